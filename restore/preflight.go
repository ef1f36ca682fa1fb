package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/restore/wire"
)

// preflight finds everything that stands in the way, and changes nothing.
func (r *Restoration) preflight(ctx context.Context) error {
	if err := checkpoint.RequireRoot("restore"); err != nil {
		return err
	}
	var problems []checkpoint.Problem
	if len(r.manifest.Trees) > 0 {
		path, version, err := checkpoint.FindCRIU(ctx, "restore", r.opts.CRIU)
		if err != nil {
			return err
		}
		r.criuPath = path
		if err := criu.Warm(ctx, path); err != nil {
			return err
		}
		if problems, err = r.checkHost(version); err != nil {
			return fmt.Errorf("restore: preflight: %w", err)
		}
		problems = append(problems, checkpoint.CheckLoopback(r.state)...)
	}
	problems = append(problems, r.checkName()...)
	problems = append(problems, r.checkPIDs()...)
	problems = append(problems, r.checkExternals()...)
	problems = append(problems, r.checkTerminals("/dev/pts")...)

	var g errgroup.Group
	var network, files, alive []checkpoint.Problem
	g.Go(func() (err error) {
		network, err = r.checkNetwork(ctx)
		return err
	})
	g.Go(func() error {
		for _, t := range r.manifest.Trees {
			binaries := slices.DeleteFunc(slices.Clone(t.Binaries), func(b checkpoint.Binary) bool { return r.opts.brought(b.Path) })
			open := slices.DeleteFunc(slices.Clone(t.Files), func(f checkpoint.File) bool { return r.opts.brought(f.Path) })
			files = append(files, checkpoint.CheckBinaries("/", binaries)...)
			files = append(files, checkpoint.CheckFiles("/", open)...)
		}
		files = append(files, checkpoint.CheckPlaces("/", r.manifest.Trees)...)
		return nil
	})
	g.Go(func() (err error) {
		alive, err = r.checkAlive(ctx)
		return err
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("restore: preflight: %w", err)
	}
	kept, losses := checkpoint.Allow(slices.Concat(problems, network, files, alive), r.opts.AllowLoss)
	for _, l := range losses {
		r.tell("%s, and you allowed it", l)
	}
	return checkpoint.Refuse("restore", kept)
}

func (r *Restoration) checkHost(version criu.Version) ([]checkpoint.Problem, error) {
	var problems []checkpoint.Problem
	if arch := r.manifest.Host.Arch; arch != runtime.GOARCH {
		problems = append(problems, checkpoint.Problem{
			Kind: "host", Object: runtime.GOARCH, Reason: "the image was made on " + arch,
			Remedy: "restore on a machine of the same architecture",
		})
	}
	lacks, err := checkpoint.CheckCPU(r.manifest.Host.CPU)
	if err != nil {
		return nil, err
	}
	problems = append(problems, lacks...)
	room, err := checkpoint.CheckRoom(checkpoint.Needs{
		Memory: r.manifest.Memory, Processes: true,
		Image: r.opts.Source == SourceAlive, // else it is here already
	})
	if err != nil {
		return nil, err
	}
	problems = append(problems, room...)
	self, err := proc.Default.Read(os.Getpid())
	if err != nil {
		return nil, err
	}
	problems = append(problems, checkpoint.CheckCapabilities(&self, r.manifest.Trees)...)
	if made, err := criu.ParseVersion(r.manifest.Host.CRIU); err == nil && version.Less(made) {
		r.tell("the image was made by CRIU %s, which is newer than this host's %s", made, version)
	}
	return problems, nil
}

// checkName refuses a namespace name that is taken.
func (r *Restoration) checkName() []checkpoint.Problem {
	name := r.report.NetNS
	if name == "" {
		if len(r.manifest.Trees) > 0 {
			return nil // the processes keep it
		}
		return []checkpoint.Problem{{
			Kind: "netns", Object: "without a name", Reason: "the image holds a namespace without a name and without processes, which nothing would keep",
			Remedy: "give it a name with --netns",
		}}
	}
	problem := checkpoint.Problem{Kind: "netns", Object: fmt.Sprintf("%q", name), Remedy: "choose another name with --netns"}
	if err := ns.CheckName(name); err != nil {
		problem.Reason = "it can't name a network namespace"
		return []checkpoint.Problem{problem}
	}
	if _, err := os.Lstat(ns.PathOf(name)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	problem.Reason = "the name is in use on this host"
	problem.Remedy += fmt.Sprintf(", or remove it with: ip netns delete %s", name)
	return []checkpoint.Problem{problem}
}

// checkPIDs decides which trees need a new pid namespace, and refuses ids that are taken where the user
// wants the host's.
func (r *Restoration) checkPIDs() []checkpoint.Problem {
	var problems []checkpoint.Problem
	r.newPIDs = make([]bool, len(r.manifest.Trees))
	for i, t := range r.manifest.Trees {
		if t.PIDNS {
			continue // CRIU rebuilds the tree's own
		}
		taken := takenIDs(t.IDs)
		switch {
		case r.opts.PIDNS == PIDNSNew:
			r.newPIDs[i] = true
		case len(taken) == 0:
		case r.opts.PIDNS != PIDNSHost:
			r.newPIDs[i] = true
			r.tell("the tree of %q lives in a new pid namespace: id %d is taken on this host", t.Name(), taken[0])
		default:
			for _, id := range taken {
				problems = append(problems, checkpoint.Problem{
					Kind: "pid", Object: fmt.Sprint(id), Reason: "the id is taken on this host" + holderOf(id),
					Remedy: "let the tree live in a pid namespace of its own with --pidns auto or new",
				})
			}
		}
	}
	return problems
}

// takenIDs returns the ids that a process, thread, group or session of this host has; zombies count.
func takenIDs(ids []int) []int {
	return slices.DeleteFunc(slices.Clone(ids), func(id int) bool {
		return id <= 0 || errors.Is(unix.Kill(id, 0), unix.ESRCH) && errors.Is(unix.Kill(-id, 0), unix.ESRCH)
	})
}

func holderOf(id int) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", id))
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" by %q", string(comm[:max(len(comm)-1, 0)]))
}

// checkExternals refuses what the trees were connected to and this host does not have.
func (r *Restoration) checkExternals() []checkpoint.Problem {
	var problems []checkpoint.Problem
	for _, t := range r.manifest.Trees {
		for _, e := range t.Externals {
			path := e.Path
			switch {
			case r.opts.brought(path):
				continue
			case e.Kind == "file" && e.Flags&unix.O_ACCMODE != unix.O_RDONLY:
				path = filepath.Dir(path) // the file itself can be made
			case e.Kind == "file", e.Kind == "socket":
			default:
				continue
			}
			if _, err := os.Stat(path); err != nil {
				problems = append(problems, checkpoint.Problem{
					Kind: "file", Object: e.Path, Reason: fmt.Sprintf("%q has it open and it is missing here", t.Name()),
					Remedy: "bring it here first",
				})
			}
		}
	}
	return problems
}

// checkTerminals refuses pseudo terminals whose number is taken: a process knows its terminal by it.
func (r *Restoration) checkTerminals(dir string) []checkpoint.Problem {
	var problems []checkpoint.Problem
	for _, t := range r.manifest.Trees {
		for _, n := range t.Terminals {
			path := filepath.Join(dir, strconv.Itoa(n))
			if _, err := os.Lstat(path); err == nil {
				problems = append(problems, checkpoint.Problem{
					Kind: "terminal", Object: path, Reason: fmt.Sprintf("%q has a terminal of this number, which is in use on this host", t.Name()),
					Remedy: "end the session on it here (who(1) names it), or the one in the service",
				})
			}
		}
	}
	return problems
}

func (r *Restoration) checkNetwork(ctx context.Context) ([]checkpoint.Problem, error) {
	found, err := netstate.Preflight(ctx, r.state, netstate.BuildOptions{Uplinks: r.opts.Uplinks})
	problems := make([]checkpoint.Problem, len(found))
	for i, l := range found {
		problems[i] = checkpoint.Problem{Kind: l.Kind, Object: l.Object, Reason: l.Reason, Remedy: l.Remedy}
	}
	return problems, err
}

// checkAlive asks on the links that the uplinks will be attached to whether somebody answers for the
// service's addresses: most likely the source, which must not live twice.
func (r *Restoration) checkAlive(ctx context.Context) ([]checkpoint.Problem, error) {
	if r.opts.Force {
		return nil, nil
	}
	attached := make(map[string]string) // interface inside -> device of this host
	for _, u := range r.state.Uplinks() {
		target := u.Target(r.opts.Uplinks)
		if target.Bridge != "" {
			attached[u.Name] = target.Bridge
		} else if target.Parent != "" {
			attached[u.Name] = target.Parent
		}
	}
	var asked []wire.Address
	for _, a := range r.state.Addresses() {
		if device := attached[a.Device]; device != "" && !a.Prefix.Addr().IsLinkLocalUnicast() {
			asked = append(asked, wire.Address{Device: device, Addr: a.Prefix.Addr()})
		}
	}
	holders, err := wire.Probe(ctx, asked)
	if err != nil {
		return nil, err
	}
	var problems []checkpoint.Problem
	for _, h := range holders {
		if r.opts.Source == SourceAlive && r.ownMAC(h) {
			continue
		}
		problems = append(problems, checkpoint.Problem{
			Kind: "address", Object: fmt.Sprintf("%s on %s", h.Addr, h.Device),
			Reason: fmt.Sprintf("%s answers for it: the source may be alive", h.MAC),
			Remedy: "stop the other copy; --force restores all the same",
		})
	}
	return problems, nil
}

// ownMAC reports whether it is the service itself that answers.
func (r *Restoration) ownMAC(h wire.Holder) bool {
	for _, a := range r.state.Addresses() {
		if a.Prefix.Addr() == h.Addr && bytes.Equal(r.state.MAC(a.Device), h.MAC) {
			return true
		}
	}
	return false
}
