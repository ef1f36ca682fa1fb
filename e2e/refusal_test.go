package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// A dump that is refused says the object, the reason and the remedy, and the service never notices.
func TestDumpRefused(t *testing.T) {
	for _, test := range []struct {
		name  string
		serve []string                // further flags of the service
		setup func(w *world) []string // returns further arguments of the dump
		says  []string
	}{
		{
			name:  "no criu",
			setup: func(w *world) []string { return []string{"--criu", "/nonexistent/criu"} },
			says:  []string{"/nonexistent/criu", "make criu"},
		},
		{
			name:  "criu too old",
			setup: func(w *world) []string { return []string{"--criu", w.fakeCRIU("echo Version: 3.17.1")} },
			says:  []string{"3.17.1", "4.2", "make criu"},
		},
		{
			name:  "criu broken",
			setup: func(w *world) []string { return []string{"--criu", w.fakeCRIU("echo wrong ELF class >&2; exit 127")} },
			says:  []string{"fake-criu", "hint"},
		},
		{
			name:  "MPTCP",
			serve: []string{"--mptcp"},
			says:  []string{"MPTCP", ":7000", "GODEBUG=multipathtcp=0"},
		},
		{
			name:  "io_uring",
			serve: []string{"--io-uring"},
			says:  []string{"io_uring", "peer", "hint"},
		},
		{
			name: "unaccepted connections",
			setup: func(w *world) []string {
				w.serve("--listen", ":7001", "--no-accept")
				w.connect(w.svc.Addr("4", 7001))
				return nil
			},
			says: []string{"accept", ":7001", "hint"},
		},
		{
			name: "rate estimator",
			setup: func(w *world) []string {
				w.sh(w.A, "tc -n svc qdisc add dev eth0 root handle 1: estimator 1sec 8sec tbf rate 100mbit burst 32k latency 50ms")
				return nil
			},
			says: []string{"qdisc", "tbf", "eth0", "--allow-loss", "hint"},
		},
		{
			name: "IPsec",
			setup: func(w *world) []string {
				w.sh(w.A, "ip -n svc xfrm state allocspi src 192.0.2.1 dst 192.0.2.2 proto esp min 0x100 max 0x200")
				return nil
			},
			says: []string{"xfrm", "192.0.2.2", "negotiated", "--allow-loss"},
		},
		{
			name: "file exists",
			setup: func(w *world) []string {
				w.check(os.WriteFile(w.image(w.A), []byte("precious"), 0o600))
				return nil
			},
			says: []string{"svc.nsm", "exists", "hint"},
		},
		{
			name:  "directory of the image is missing",
			setup: func(w *world) []string { return []string{"-e", filepath.Join(w.A.Dir, "missing", "svc.nsm")} },
			says:  []string{"missing", "hint"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.serve(test.serve...)
			c := w.echo("4", 3)
			args := []string{"dump", "--netns", "svc"}
			if test.setup != nil {
				args = append(args, test.setup(w)...)
			}
			if !strings.Contains(strings.Join(args, " "), "-e ") {
				args = append(args, "-e", w.image(w.A))
			}
			before := w.snapshot(w.A)
			w.fails(w.A, exitRefused, test.says, args...)
			w.same(w.A, before)
			c.progress()
			w.unharmed()
			w.stopAll(c)
		})
	}
}

// fakeCRIU makes a program of a line of shell that stands for a criu.
func (w *world) fakeCRIU(line string) string {
	path := filepath.Join(w.Dir, "fake-criu")
	w.check(os.WriteFile(path, []byte("#!/bin/sh\n"+line+"\n"), 0o755))
	return path
}

// connect makes a connection from the client that nobody answers, for the test's length.
func (w *world) connect(addr string) {
	w.daemon(w.Client, "sh -c '%s load --connect %s'", w.peerBin(), addr)
	w.check(lab.Eventually(w.limit(), func() error {
		_, port, _ := strings.Cut(addr, ":")
		out, err := w.A.Output(w.ctx, "ip", "netns", "exec", "svc", "ss", "-tnH", "state", "established", "sport", "=", ":"+port)
		if err == nil && out == "" {
			err = fmt.Errorf("no connection to %s", addr)
		}
		return err
	}))
}

// What is not a service in a namespace of its own is not dumped.
func TestDumpTargets(t *testing.T) {
	w := newWorld(t)
	w.serve()
	w.daemon(w.A, "sleep 601")
	w.daemon(w.A, inSvc+"sleep 602")
	w.sh(w.A, "ip netns add empty; touch /tmp/not")
	w.ok(w.A, "check")
	c := w.echo("4", 3)
	service, outside := w.pid(w.A, "peer", "serve"), w.pid(w.A, "sleep", "601")
	other := w.pid(w.A, "sleep", "602")
	before := w.snapshot(w.A)
	for _, test := range []struct {
		args []string
		says []string
	}{
		{[]string{"--tree", fmt.Sprint(outside)}, []string{"own network namespace", "hint"}},
		{[]string{"--netns", "/proc/1/ns/net"}, []string{"own network namespace", "hint"}},
		{[]string{"--netns", "nobody"}, []string{"nobody", "no such network namespace", "ip netns list"}},
		{[]string{"--netns", "/tmp/not"}, []string{"not a network namespace"}},
		{[]string{"--netns", "empty"}, []string{"empty", "no process", "hint"}},
		{[]string{"--tree", "31999"}, []string{"31999", "no such process"}},
		{[]string{"--tree", fmt.Sprint(service)}, []string{fmt.Sprint(other), "sleep", "hint"}}, // another process in the namespace
	} {
		w.fails(w.A, exitRefused, append(test.says, "refused"), append([]string{"dump", "-e", w.image(w.A)}, test.args...)...)
		w.same(w.A, before)
	}
	c.progress()
	w.unharmed()
	w.stopAll(c)
	w.sh(w.A, "kill %d %d; ip netns del empty; rm /tmp/not", outside, other)
}

// Without root nothing is touched.
func TestNoRoot(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 3)
	w.check(os.Chmod(w.Dir, 0o755))
	before := w.snapshot(w.A)
	for _, args := range [][]string{
		{"dump", "--netns", "svc", "-e", "/tmp/svc.nsm"},
		{"restore", "-i", "/tmp/svc.nsm"},
	} {
		cmd := exec.CommandContext(w.ctx, w.nsmigrateBin(), args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		r, err := w.A.RunCmd(w.ctx, cmd)
		w.check(err)
		w.says(r, exitRefused, "root", "hint")
		t.Log(r)
	}
	w.same(w.A, before)
	c.progress()
	w.stopAll(c)
}

// What could not be carried in silence can be left behind with the user's leave.
func TestAllowLoss(t *testing.T) {
	w := newWorld(t)
	w.serve()
	w.sh(w.A, "tc -n svc qdisc add dev eth0 root handle 1: estimator 1sec 8sec tbf rate 100mbit burst 32k latency 50ms")
	c := w.echo("4", 3)
	before := w.snapshot(w.A)
	r := w.nsmigrate(w.A, "dump", "--format", "json", "--netns", "svc", "-e", w.image(w.A))
	var refusal struct {
		Error struct {
			Problems []struct {
				Kind, Object string
				Loss         bool
			}
		}
	}
	if err := json.Unmarshal([]byte(r.Stderr), &refusal); err != nil || len(refusal.Error.Problems) != 1 || !refusal.Error.Problems[0].Loss {
		t.Fatalf("%v: %v", err, r)
	}
	w.same(w.A, before)
	w.dump(w.A, "--allow-loss", refusal.Error.Problems[0].Kind)
	w.carry(w.A, w.B)
	w.restore(w.B)
	c.progress()
	w.unharmed()
	w.stopAll(c)
}

// Dry runs say whether it would go, and change nothing.
func TestDryRun(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 3)
	before := w.snapshot(w.A)
	w.ok(w.A, "dump", "--netns", "svc", "--dry-run")
	w.same(w.A, before)
	c.progress()
	w.dump(w.A)
	w.carry(w.A, w.B)
	before = w.snapshot(w.B)
	w.ok(w.B, "restore", "--dry-run", "-i", w.image(w.B))
	w.same(w.B, before)
	w.restore(w.B)
	c.progress()
	w.unharmed()
	w.stopAll(c)
}

// A restore that is refused says everything that stands in the way, leaves nothing, and the image can still be
// restored, connections and all, when that is out of the way.
func TestRestoreRefused(t *testing.T) {
	for _, test := range []struct {
		name  string
		block func(w *world) []string // puts something in the way; its result are further arguments
		clear string                  // shell on host B that takes it out of the way
		says  []string
	}{
		{
			name:  "name in use",
			block: func(w *world) []string { w.sh(w.B, "ip netns add svc"); return nil },
			clear: "ip netns del svc",
			says:  []string{"svc", "in use", "--netns"},
		},
		{
			name:  "no bridge",
			block: func(w *world) []string { w.sh(w.B, "ip link set br0 name br7"); return nil },
			clear: "ip link set br7 name br0",
			says:  []string{"br0", "--uplink"},
		},
		{
			name:  "no bridge by that name",
			block: func(w *world) []string { return []string{"--uplink", "eth0=veth-svc@br9"} },
			clear: "true",
			says:  []string{"br9", "hint"},
		},
		{
			name:  "link name in use",
			block: func(w *world) []string { w.sh(w.B, "ip link add veth-svc type veth peer name x"); return nil },
			clear: "ip link del veth-svc",
			says:  []string{"veth-svc", "--uplink"},
		},
		{
			name: "process id taken",
			block: func(w *world) []string {
				w.daemon(w.B, "sh -c 'echo %d > /proc/sys/kernel/ns_last_pid; sleep 600 & wait'", w.servicePID-1)
				w.pid(w.B, "sleep", "600")
				return []string{"--pidns", "host"}
			},
			clear: "kill $(ps -C sleep -o pid=)",
			says:  []string{"pid", "taken", "--pidns"},
		},
		{
			name: "another program",
			block: func(w *world) []string {
				w.check(os.Rename(w.peerBin(), w.peerBin()+".good"))
				w.copyFile(w.nsmigrateBin(), w.peerBin())
				return nil
			},
			clear: "mv PEER.good PEER",
			says:  []string{"peer", "hint"},
		},
		{
			name:  "no program",
			block: func(w *world) []string { w.check(os.Rename(w.peerBin(), w.peerBin()+".good")); return nil },
			clear: "mv PEER.good PEER",
			says:  []string{"peer", "hint"},
		},
		{
			name:  "address answers",
			block: func(w *world) []string { w.sh(w.A, "ip address add %s/24 dev br0", w.svc.IPv4); return nil },
			says:  []string{"10.77.0.100", "--force"},
		},
		{
			name:  "IPv6 address answers",
			block: func(w *world) []string { w.sh(w.A, "ip address add %s/64 dev br0 nodad", w.svc.IPv6); return nil },
			says:  []string{"fd77::100", "--force"},
		},
		{
			name:  "no criu",
			block: func(w *world) []string { return []string{"--criu", "/nonexistent/criu"} },
			clear: "true",
			says:  []string{"/nonexistent/criu", "make criu"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.serve()
			c := w.echo("4", 3)
			w.servicePID = w.pid(w.A, "peer", "serve")
			w.dump(w.A)
			w.carry(w.A, w.B)
			digest := w.digest(w.image(w.B))
			args := append([]string{"restore", "-i", w.image(w.B)}, test.block(w)...)
			before := w.snapshot(w.B)
			w.fails(w.B, exitRefused, test.says, args...)
			w.same(w.B, before)
			if w.digest(w.image(w.B)) != digest {
				t.Error("the image is not what it was")
			}
			if test.clear == "" {
				w.sh(w.A, "ip address flush dev br0")
			} else {
				w.sh(w.B, "%s", strings.ReplaceAll(test.clear, "PEER", w.peerBin()))
			}
			w.restore(w.B)
			c.progress()
			w.unharmed()
			w.stopAll(c)
		})
	}
}

// A service with mounts of its own needs the places of the old host's mounts on the new one. All that are missing are named
// before anything is frozen or built.
func TestPlacesMissing(t *testing.T) {
	w := newWorld(t)
	w.sh(w.A, "for d in /tmp/one /tmp/two; do mkdir $d; mount -t tmpfs none $d; mkdir $d/three; mount -t tmpfs none $d/three; done")
	was := maps.Clone(w.empty[w.A])
	for line := range w.snapshot(w.A) {
		if strings.Contains(line, " /tmp/one") || strings.Contains(line, " /tmp/two") {
			w.empty[w.A][line] = struct{}{}
		}
	}
	w.Cleanup(func() {
		w.sh(w.A, "umount /tmp/one/three /tmp/two/three /tmp/one /tmp/two; rmdir /tmp/one /tmp/two")
		w.empty[w.A] = was
	})
	w.daemon(w.A, "unshare --pid --fork --mount-proc nsenter --net=/run/netns/svc setsid %s serve --quiet", w.peerBin())
	w.listening("7000")
	c := w.echo("4", 3)
	before := w.snapshot(w.A)
	says := []string{"mount /tmp/one /tmp/one/three /tmp/two /tmp/two/three: ", "missing here", "hint: make it (mkdir -p"}
	w.fails(w.A, exitRefused, append(says, "on the destination: "), "migrate", "--netns", "svc", "--to", w.linkTo(w.B).address())
	w.same(w.A, before)
	c.progress()
	w.dump(w.A)
	w.carry(w.A, w.B)
	w.sh(w.B, "mkdir -p /tmp/two/three")
	before = w.snapshot(w.B)
	w.fails(w.B, exitRefused, []string{"mount /tmp/one /tmp/one/three: "}, "restore", "-i", w.image(w.B))
	w.same(w.B, before)
	w.sh(w.B, "mkdir -p /tmp/one/three")
	w.restore(w.B)
	c.progress()
	w.unharmed()
	w.stopAll(c)
	w.Cleanup(func() { w.sh(w.B, "rm -r /tmp/one /tmp/two") })
}

// All that is missing is said at once.
func TestAllProblemsAtOnce(t *testing.T) {
	w := newWorld(t)
	second := w.peerBin() + "-2"
	w.copyFile(w.peerBin(), second)
	w.serve()
	w.daemon(w.A, inSvc+"%s serve --quiet --listen :7001", second)
	w.listening("7001")
	w.echo("4", 1)
	w.dump(w.A)
	w.carry(w.A, w.B)
	w.sh(w.B, "ip netns add svc; ip link set br0 name br7")
	w.check(os.Remove(second))
	w.check(os.Remove(w.peerBin()))
	before := w.snapshot(w.B)
	w.fails(w.B, exitRefused, []string{second, w.peerBin() + ":", "br0", "svc"}, "restore", "-i", w.image(w.B))
	w.same(w.B, before)
	w.sh(w.B, "ip link set br7 name br0")
}

// One flipped byte anywhere, a missing end, another version: nothing of such an image is restored.
func TestDamagedImage(t *testing.T) {
	w := newWorld(t)
	w.serve()
	w.echo("4", 3)
	w.dump(w.A, "-c", "none")
	w.carry(w.A, w.B)
	before := w.snapshot(w.B)
	good, err := os.ReadFile(w.image(w.B))
	w.check(err)
	damaged := func(name string, b []byte) {
		t.Helper()
		w.check(os.WriteFile(w.image(w.B), b, 0o600))
		r := w.nsmigrate(w.B, "restore", "-i", w.image(w.B))
		if r.Code != exitDamaged {
			t.Errorf("%s: %v", name, r)
		}
	}
	for i := range 16 {
		at := i * (len(good) - 1) / 15
		bad := append([]byte(nil), good...)
		bad[at] ^= 0x10
		damaged(fmt.Sprintf("byte %d of %d flipped", at, len(good)), bad)
	}
	for _, size := range []int{0, 1, 511, len(good) / 2, len(good) - 1} {
		damaged(fmt.Sprintf("%d of %d bytes", size, len(good)), good[:size])
	}
	damaged("a byte too many", append(append([]byte(nil), good...), 0))
	w.check(os.WriteFile(w.image(w.B), good, 0o600))
	w.same(w.B, before)
}

// A directory is verified like a file.
func TestDamagedDirectory(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 3)
	dir := filepath.Join(w.B.Dir, "image")
	w.ok(w.A, "dump", "--netns", "svc", "-D", dir)
	before := w.snapshot(w.B)
	manifest := filepath.Join(dir, "manifest.json")
	good, err := os.ReadFile(manifest)
	w.check(err)
	for name, damage := range map[string]func(string) string{
		"unknown major version":       func(s string) string { return strings.Replace(s, `"major": 2`, `"major": 9`, 1) },
		"path that leaves the images": func(s string) string { return strings.Replace(s, `"name": "netns/`, `"name": "../netns/`, 1) },
		"no manifest":                 func(string) string { return "" },
	} {
		w.check(os.WriteFile(manifest, []byte(damage(string(good))), 0o600))
		r := w.nsmigrate(w.B, "restore", "-D", dir)
		if r.Code != exitDamaged {
			t.Errorf("%s: %v", name, r)
		}
	}
	w.check(os.WriteFile(manifest, good, 0o600))
	pages, err := filepath.Glob(filepath.Join(dir, "checkpoint", "pages-*.img"))
	w.check(err)
	if len(pages) == 0 {
		t.Fatal("no memory in the image")
	}
	w.flip(pages[0])
	w.fails(w.B, exitDamaged, []string{"pages-"}, "restore", "-D", dir)
	w.flip(pages[0])
	w.same(w.B, before)
	w.ok(w.B, "restore", "-D", dir)
	c.progress()
	w.unharmed()
	w.stopAll(c)
}

// A host that has less than that of the image says so before anything is built.
func TestRestoreOnLess(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c := w.echo("4", 3)
	dir := filepath.Join(w.B.Dir, "image")
	w.ok(w.A, "dump", "--netns", "svc", "-D", dir)
	before := w.snapshot(w.B)
	manifest := filepath.Join(dir, "manifest.json")
	good, err := os.ReadFile(manifest)
	w.check(err)
	says := func(text string) {
		w.Helper()
		w.check(os.WriteFile(manifest, []byte(text), 0o600))
		w.sh(w.B, "cd %s; sha256sum manifest.json > manifest.sha256", dir)
	}
	newer := strings.Replace(string(good), `"cpu": [`, `"cpu": ["future1", "future2",`, 1)
	says(newer)
	w.fails(w.B, exitRefused, []string{"cpu", "future1 future2", "--allow-loss cpu"}, "restore", "-D", dir)
	memory := regexp.MustCompile(`"memory": \d+`)
	says(memory.ReplaceAllString(newer, `"memory": 9000000000000000`))
	w.fails(w.B, exitRefused, []string{"future1", "memory of this host", "are available"}, "restore", "-D", dir)
	w.same(w.B, before)
	says(newer)
	r := w.ok(w.B, "restore", "-D", dir, "--allow-loss", "cpu")
	w.says(r, exitOK, "future1 future2")
	c.progress()
	w.unharmed()
	w.stopAll(c)
}

// flip flips a bit in the middle of a file.
func (w *world) flip(path string) {
	w.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	w.check(err)
	defer f.Close()
	info, err := f.Stat()
	w.check(err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, info.Size()/2)
	w.check(err)
	b[0] ^= 1
	_, err = f.WriteAt(b, info.Size()/2)
	w.check(err)
}

func (w *world) digest(path string) string {
	w.Helper()
	out, err := w.Client.Output(context.WithoutCancel(w.ctx), "sha256sum", path)
	w.check(err)
	return strings.Fields(out)[0]
}

// A kernel without SCTP can't be asked.
func TestSCTP(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
	if err != nil {
		t.Skip("this kernel has no SCTP: ", err)
	}
	unix.Close(fd)
	w := newWorld(t)
	w.serve()
	w.daemon(w.A, inSvc+"python3 -c 'import socket,time; s=socket.socket(2,1,132); s.bind((\"\",7002)); s.listen(); time.sleep(600)'")
	w.pid(w.A, "python3", "132")
	before := w.snapshot(w.A)
	w.fails(w.A, exitRefused, []string{"SCTP", "hint"}, "dump", "--netns", "svc", "-e", w.image(w.A))
	w.same(w.A, before)
}
