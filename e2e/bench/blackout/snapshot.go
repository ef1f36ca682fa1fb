package blackout

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// snapshotsName is what a pattern of scenes finds them by.
const snapshotsName = "snapshots"

const (
	files     = 4 // kinds of them
	fileTakes = 4 * time.Second
)

// Snapshot is how long it takes to write a service with a lot of memory into a compressed file while it lives on.
type Snapshot struct {
	Load   Workload  `json:"workload"`
	Place  string    `json:"place"` // memory or disk
	Ours   []float64 `json:"ours"`  // seconds, with everything on the disk in the end
	Theirs []float64 `json:"theirs"`
	Size   int64     `json:"size"`       // of our file, bytes
	Other  int64     `json:"other_size"` // of theirs
	Reason string    `json:"reason,omitempty"`
}

// snapshots compare `nsmigrate dump` with `criu dump` and `zstd -1 -T0` behind it.
func (b *bench) snapshots(ctx context.Context, rounds int, limit time.Duration) []Snapshot {
	rounds = fit(rounds, files*fileTakes, limit)
	var all []Snapshot
	for _, fill := range []Fill{Text, Noise} {
		for _, place := range []string{"memory", "disk"} {
			b.progress("snapshots, %s, %s", fill, place)
			x := Snapshot{Load: Workload{MemoryMB: 1024, Fill: fill}, Place: place}
			if err := b.snapshot(ctx, &x, rounds); err != nil {
				x.Reason = err.Error()
			}
			all = append(all, x)
		}
	}
	return all
}

func (b *bench) snapshot(ctx context.Context, x *Snapshot, rounds int) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	m, err := b.reference(ctx)
	if err != nil {
		return err
	}
	s := b.newService(x.Load)
	defer m.stop(context.WithoutCancel(ctx), b.world, s) //nolint:errcheck // the lab goes with everything in it
	if err := m.start(ctx, b.world, s); err != nil {
		return err
	}
	if err := b.listening(ctx, s); err != nil {
		return err
	}
	pid, err := rootPID(s.host, s)
	if err != nil {
		return err
	}
	dir := "/dev/shm/snapshot"
	if x.Place == "disk" {
		dir = filepath.Join(s.host.Dir, "snapshot")
	}
	var net string // CRIU leaves the network out
	if info, err := os.Readlink(s.host.Path(fmt.Sprintf("/proc/%d/ns/net", pid))); err == nil {
		net = info[len("net:[") : len(info)-1]
	}
	ours := fmt.Sprintf("%s dump --netns %s --leave-running --export %s/file --format json >/dev/null", b.nsmigrate, s.Name, dir)
	theirs := fmt.Sprintf(`mkdir %[1]s/images
		%[2]s dump -t %[3]d -D %[1]s/images -v1 --leave-running --external 'net[%[4]s]:svc'
		tar -C %[1]s/images -c . | zstd -q -1 -T0 -o %[1]s/file
		sync %[1]s/file`, dir, b.criu, pid, net)
	for range rounds {
		for _, tool := range []struct {
			script string
			took   *[]float64
			size   *int64
		}{{ours, &x.Ours, &x.Size}, {theirs, &x.Theirs, &x.Other}} {
			if err := s.host.Script(ctx, "mkdir "+dir); err != nil {
				return err
			}
			start := time.Now()
			if err := s.host.Script(ctx, tool.script); err != nil {
				return err
			}
			*tool.took = append(*tool.took, time.Since(start).Seconds())
			info, err := os.Stat(s.host.Path(dir + "/file"))
			if err != nil {
				return err
			}
			*tool.size = info.Size()
			if err := s.host.Script(ctx, "rm -r "+dir); err != nil {
				return err
			}
		}
	}
	return nil
}
