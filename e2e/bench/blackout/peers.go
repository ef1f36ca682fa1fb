package blackout

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

//go:embed peers.sh
var peersScript string

// peers are the programs of other tools. They live outside of the lab, to be there the next time too.
type peers struct {
	once sync.Once
	err  error
	root string
	criu string
}

// provide fetches them.
func (p *peers) provide(ctx context.Context, w *world) error {
	p.once.Do(func() {
		cache, err := os.UserCacheDir()
		if err != nil {
			p.err = err
			return
		}
		prefix := filepath.Join(cache, "nsmigrate", "peers")
		out, err := exec.CommandContext(ctx, "bash", "-c", peersScript, "peers", prefix).CombinedOutput()
		if err != nil {
			p.err = fmt.Errorf("fetch runc, crun and podman: %w: %s", err, out)
			return
		}
		p.root, p.criu = filepath.Join(prefix, "root"), w.criu
	})
	return p.err
}

// path is where a program is: unpacked, or installed on the system.
func (p *peers) path(program string) (string, error) {
	for _, dir := range []string{"usr/bin", "usr/sbin"} {
		if path := filepath.Join(p.root, dir, program); isFile(path) {
			return path, nil
		}
	}
	return exec.LookPath(program)
}

// environ has them find each other, their libraries, and the same CRIU as everybody.
func (p *peers) environ(more ...string) []string {
	env := slices.DeleteFunc(lab.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "PATH=") || strings.HasPrefix(v, "HOME=")
	})
	libraries, _ := filepath.Glob(filepath.Join(p.root, "usr/lib/*-linux-gnu")) // the pattern is in order
	return append(append(env,
		"PATH="+strings.Join([]string{
			filepath.Join(p.root, "usr/bin"), filepath.Join(p.root, "usr/sbin"), filepath.Dir(p.criu), "/usr/sbin:/usr/bin:/sbin:/bin",
		}, ":"),
		"LD_LIBRARY_PATH="+strings.Join(libraries, ":")), more...)
}

// run runs a program on a host, which has to succeed; else what it logged is the reason. What a container inherits from it as
// standard streams must not be outside of the container: there are none, unless it is told otherwise.
func (p *peers) run(ctx context.Context, h *lab.Host, cmd *exec.Cmd, log string) error {
	process, err := h.Start(cmd)
	if err != nil {
		return err
	}
	if err := process.Wait(ctx); err != nil {
		text, _ := os.ReadFile(log)
		return fmt.Errorf("%s: %s: %w\n%s", h.Name, strings.Join(cmd.Args, " "), err, text)
	}
	return nil
}

// command prepares one of a program.
func (p *peers) command(ctx context.Context, env []string, args ...string) (*exec.Cmd, error) {
	path, err := p.path(args[0])
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Env = env
	return cmd, nil
}

// criuConfig has the runtimes' CRIU lock with nftables: iptables, its default, takes longer. The cgroups are the machine's and
// not the lab's; CRIU is not to make any.
const criuConfig = "network-lock nftables\nmanage-cgroups ignore\n"

// explain adds to an error what CRIU's log says of it.
func explain(err error, log string) error {
	if err == nil {
		return nil
	}
	text, readErr := os.ReadFile(log)
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "Error (") {
			err = fmt.Errorf("%w\n%s", err, strings.TrimSpace(line))
		}
	}
	return err
}

// removeCgroups removes what a runtime left in the cgroups, which the hosts share with the machine.
func removeCgroups(pattern string) error {
	var dirs []string
	for _, at := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		tops, err := filepath.Glob(at + pattern)
		if err != nil {
			return err
		}
		for _, top := range tops {
			err := filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	slices.Sort(dirs)
	slices.Reverse(dirs) // what is below comes first
	var errs []error
	for _, dir := range slices.Compact(dirs) {
		errs = append(errs, unix.Rmdir(dir))
	}
	return errors.Join(errs...)
}
