package host

import (
	"context"

	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
)

// criuProbes are those that ask CRIU. Without one that is found and new enough, the rest is skipped.
func criuProbes(explicit string) []probe {
	var path string // set once a usable CRIU is known
	feature := func(name string) func(context.Context) (string, error) {
		return func(ctx context.Context) (string, error) {
			if path == "" {
				return "", skip("there is no usable criu to ask")
			}
			return "supported", criu.CheckFeature(ctx, path, name)
		}
	}
	return []probe{
		{
			name: "criu", needed: true,
			run: func(ctx context.Context) (string, error) {
				p, v, err := criu.FindRequired(ctx, explicit)
				if err != nil {
					return "", err
				}
				path = p
				return "version " + v.String() + " at " + p, nil
			},
			remedy: "run it by hand to see what it lacks, or install another with `make criu`",
		},
		{
			name: "criu-check", needed: true,
			run: func(ctx context.Context) (string, error) {
				if path == "" {
					return "", skip("there is no usable criu to run")
				}
				return "`criu check` is content with this kernel", criu.Check(ctx, path)
			},
			remedy: "a newer criu often knows a newer kernel: run `make criu`; the whole story is told by `criu check -v4`",
		},
		{
			name: "soft-dirty", run: feature("mem_dirty_track"),
			lack:   "memory can't be copied ahead while the service runs, so all of it is copied while it is frozen",
			remedy: "use a kernel with CONFIG_MEM_SOFT_DIRTY if the service is large",
		},
		{
			name: "userfaultfd", run: feature("uffd-noncoop"),
			lack:   "memory can't be fetched after the service runs again",
			remedy: "use a kernel with CONFIG_USERFAULTFD if the service is large",
		},
	}
}
