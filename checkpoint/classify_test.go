package checkpoint

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
)

const (
	hostMnt, hostPID, hostUser, hostIPC = 1, 2, 3, 4
	svcNet, hostNet                     = 70, 71
)

// daemon is a process without any trouble: its own session leader, on the host's mounts.
func daemon(pid int) proc.Process {
	return proc.Process{
		PID: pid, PPID: 1, State: 'S', Comm: fmt.Sprintf("svc%d", pid), Cmdline: []string{"/bin/svc", "-d"}, Cwd: "/",
		NSpid: []int{pid}, NSpgid: []int{pid}, NSsid: []int{pid},
		Threads: []proc.Thread{{TID: pid, NSTID: pid, NetNS: svcNet}},
		NS:      proc.Namespaces{Mnt: hostMnt, PID: hostPID, User: hostUser, IPC: hostIPC, Net: svcNet},
	}
}

var hostMounts = []proc.Mount{
	{ID: 20, Dev: "8:1", Root: "/", Point: "/", Type: "ext4", Source: "/dev/sda1"},
	{ID: 21, Parent: 20, Dev: "0:21", Root: "/", Point: "/proc", Type: "proc"},
	{ID: 22, Parent: 20, Dev: "0:22", Root: "/", Point: "/sys", Type: "sysfs"},
	{ID: 23, Parent: 20, Dev: "0:6", Root: "/", Point: "/dev", Type: "devtmpfs"},
	{ID: 24, Parent: 23, Dev: "0:24", Root: "/", Point: "/dev/pts", Type: "devpts"},
}

// scene is a host with trees of processes in the namespace; the first of each is its root.
func scene(trees ...[]proc.Process) *Scene {
	s := &Scene{
		NetNS:  svcNet,
		Host:   Surroundings{Namespaces: daemon(0).NS, Mounts: hostMounts, SysResource: true},
		Traits: make(map[uint64]sockets.Traits),
	}
	for _, t := range trees {
		s.Trees = append(s.Trees, proc.Tree{Processes: t, Mounts: hostMounts})
	}
	return s
}

func one(change func(*proc.Process)) *Scene {
	p := daemon(100)
	change(&p)
	return scene([]proc.Process{p})
}

// socketScene is a process with a TCP socket on descriptor 3.
func socketScene(t sockets.Traits, i sockets.Inet) *Scene {
	s := one(func(p *proc.Process) { p.FDs = []proc.FD{{Num: 3, Target: "socket:[500]", TTY: -1}} })
	if t.NetNS == 0 {
		t.NetNS = svcNet
	}
	s.Traits[500] = t
	if i.Protocol != 0 {
		i.Inode = 500
		s.Inets = []sockets.Inet{i}
	}
	return s
}

func device(target string, major, minor uint32, more func(*proc.FD)) *Scene {
	return one(func(p *proc.Process) {
		fd := proc.FD{Num: 5, Target: target, Mode: unix.S_IFCHR, Rdev: unix.Mkdev(major, minor), Dev: 6, MntID: 23, Nlink: 1, TTY: -1}
		if more != nil {
			more(&fd)
		}
		p.FDs = []proc.FD{fd}
	})
}

func TestClassifyProblems(t *testing.T) {
	addr := netip.MustParseAddrPort
	tcp := sockets.Traits{Family: unix.AF_INET, Type: unix.SOCK_STREAM, Protocol: unix.IPPROTO_TCP}
	for _, tt := range []struct {
		name  string
		scene *Scene
		root  int
		want  []string
	}{
		{name: "nothing", scene: one(func(*proc.Process) {})},
		{name: "two trees", scene: scene([]proc.Process{daemon(100)}, []proc.Process{daemon(200)})},
		{
			name: "one tree of two", scene: scene([]proc.Process{daemon(100)}, []proc.Process{daemon(200)}), root: 200,
			want: []string{"process process 100 (svc100): it lives in the network namespace, but outside of the tree to be dumped | dump the whole namespace (--netns), or end the process first"},
		},
		{
			name: "part of a tree", scene: scene([]proc.Process{daemon(100), daemon(101)}), root: 101,
			want: []string{"process process 100 (svc100): it is an ancestor of process 101 in the same network namespace | dump the whole namespace (--netns), or end the process first"},
		},
		{
			name:  "zombies have no namespaces",
			scene: scene([]proc.Process{daemon(100), {PID: 101, PPID: 100, State: 'Z', NSpid: []int{101}, NSpgid: []int{100}, NSsid: []int{100}}}),
		},
		{
			name: "its own terminal by its other name",
			scene: one(func(p *proc.Process) {
				p.Terminal = 34825
				p.FDs = []proc.FD{
					{Num: 6, Target: "/dev/ptmx", Mode: unix.S_IFCHR, Rdev: unix.Mkdev(5, 2), MntID: 23, Nlink: 1, Flags: unix.O_RDWR, TTY: 9},
					{Num: 7, Target: "/dev/tty", Mode: unix.S_IFCHR, Rdev: unix.Mkdev(5, 0), MntID: 23, Nlink: 1, Flags: unix.O_RDWR, TTY: -1},
				}
			}),
			want: []string{"terminal /dev/tty, descriptor 7 of process 100 (svc100): CRIU can't carry a controlling terminal that is open as /dev/tty while its other end is in the service too | use a shell there that opens its terminal by its own name, such as bash instead of dash"},
		},
		{
			name:  "traced",
			scene: one(func(p *proc.Process) { p.Tracer = 7 }),
			want:  []string{"process process 100 (svc100): process 7 traces it, and CRIU must | end the debugger or strace first"},
		},
		{
			name:  "session outside, gets its own",
			scene: one(func(p *proc.Process) { p.NSpid, p.NSsid, p.NSpgid = []int{100, 1}, []int{90, 0}, []int{90, 0} }),
		},
		{
			name: "session outside, with a terminal",
			scene: one(func(p *proc.Process) {
				p.NSpid, p.NSsid, p.NSpgid, p.Terminal = []int{100, 1}, []int{90, 0}, []int{90, 0}, 34816
			}),
			want: []string{"process process 100 (svc100): the leader of its session is outside of its pid namespace | start it with setsid, e.g. unshare --pid --fork setsid COMMAND"},
		},
		{
			name:  "session outside, leads a group",
			scene: one(func(p *proc.Process) { p.NSpid, p.NSsid, p.NSpgid = []int{100, 1}, []int{90, 0}, []int{100, 1} }),
			want:  []string{"process process 100 (svc100): the leader of its session is outside of its pid namespace | start it with setsid, e.g. unshare --pid --fork setsid COMMAND"},
		},
		{
			name: "another user without the capability",
			scene: func() *Scene {
				s := one(func(p *proc.Process) { p.UIDs = [4]int{0, 33, 33, 33} })
				s.Host.SysResource = false
				return s
			}(),
			want: []string{"process process 100 (svc100): it runs as user 33, whose limits can be read only with CAP_SYS_RESOURCE, which this host's root lacks | give nsmigrate the capability, or run the service as root"},
		},
		{name: "another user with the capability", scene: one(func(p *proc.Process) { p.UIDs = [4]int{33, 33, 33, 33} })},
		{
			name:  "user namespace",
			scene: one(func(p *proc.Process) { p.NS.User = 99 }),
			want:  []string{"process process 100 (svc100): it lives in a user namespace of its own, which can't be rebuilt around an existing network namespace | start the service without a user namespace"},
		},
		{
			name: "mount namespace of one process",
			scene: func() *Scene {
				child := daemon(101)
				child.NS.Mnt = 99
				return scene([]proc.Process{daemon(100), child})
			}(),
			want: []string{"process process 101 (svc101): it lives in another mount namespace than the root of its tree, process 100 | start the service without private mounts for single processes"},
		},
		{
			name: "thread elsewhere",
			scene: one(func(p *proc.Process) {
				p.Threads = append(p.Threads, proc.Thread{TID: 105, NSTID: 105, NetNS: hostNet})
			}),
			want: []string{"process process 100 (svc100): its thread 105 lives in another network namespace | "},
		},
		{
			name: "stray child",
			scene: func() *Scene {
				s := one(func(*proc.Process) {})
				stray := daemon(120)
				stray.PPID = 100
				s.Trees[0].Strays = []proc.Process{stray}
				return s
			}(),
			want: []string{"process process 120 (svc120): it is a child of process 100, but lives in another network namespace | end it, or start it outside of the service"},
		},
		{
			name: "container",
			scene: func() *Scene {
				s := one(func(p *proc.Process) { p.NS.Mnt = 99 })
				s.Trees[0].Mounts = []proc.Mount{{ID: 90, Dev: "0:90", Root: "/", Point: "/", Type: "overlay", Source: "overlay"}}
				return s
			}(),
			want: []string{"mount root file system of process 100 (svc100): it is overlay (overlay), not the host's: the service runs in a container's or chroot's root, which is not carried | move containers with their engine's checkpoint command; start services in the host's file system"},
		},
		{
			name: "pid namespace below a server",
			scene: func() *Scene {
				s := socketScene(tcp, sockets.Inet{})
				s.Trees[0].Inits = []int{110}
				return s
			}(),
			want: []string{"process process 100 (svc100): its child 110 begins a pid namespace of its own inside the tree, which CRIU can't dump | start the two services separately in the network namespace"},
		},
		{
			name:  "kernel TLS",
			scene: socketScene(sockets.Traits{Family: unix.AF_INET, Type: unix.SOCK_STREAM, Protocol: unix.IPPROTO_TCP, ULP: "tls"}, sockets.Inet{Protocol: unix.IPPROTO_TCP, State: sockets.Established, Local: addr("10.0.0.1:443"), Remote: addr("10.0.0.2:4000")}),
			want:  []string{"ktls tcp ESTAB 10.0.0.1:443 10.0.0.2:4000, descriptor 3 of process 100 (svc100): its tls state is in the kernel, which does not give it out | turn kernel TLS off in the service (for nginx and OpenSSL: ssl_conf_command Options -KTLS)"},
		},
		{
			name:  "sctp",
			scene: socketScene(sockets.Traits{Family: unix.AF_INET, Type: unix.SOCK_SEQPACKET, Protocol: unix.IPPROTO_SCTP}, sockets.Inet{}),
			want:  []string{"sctp sctp socket, descriptor 3 of process 100 (svc100): CRIU can't carry SCTP | "},
		},
		{
			name:  "dccp",
			scene: socketScene(sockets.Traits{Family: unix.AF_INET, Type: sockDCCP, Protocol: unix.IPPROTO_DCCP}, sockets.Inet{}),
			want:  []string{"dccp dccp socket, descriptor 3 of process 100 (svc100): CRIU can't carry DCCP | "},
		},
		{
			name:  "smc",
			scene: socketScene(sockets.Traits{Family: 43, Type: unix.SOCK_STREAM}, sockets.Inet{}),
			want:  []string{"socket family 43 socket, descriptor 3 of process 100 (svc100): CRIU can't carry sockets of address family 43 | "},
		},
		{
			name:  "inherited socket",
			scene: socketScene(sockets.Traits{Family: unix.AF_INET, Type: unix.SOCK_STREAM, Protocol: unix.IPPROTO_TCP, NetNS: hostNet}, sockets.Inet{}),
			want:  []string{"socket tcp socket, descriptor 3 of process 100 (svc100): it was made in another network namespace and can't be made there again | have the service open it itself, or start the service without inherited sockets (for systemd: StandardOutput=file:...)"},
		},
		{
			name:  "tcp md5",
			scene: socketScene(tcp, sockets.Inet{Protocol: unix.IPPROTO_TCP, State: sockets.Listen, Local: addr("0.0.0.0:179"), MD5: true}),
			want:  []string{"socket tcp LISTEN 0.0.0.0:179, descriptor 3 of process 100 (svc100): its segments are signed with a key that the kernel does not give out (TCP MD5) | close the session before the dump"},
		},
		{
			name: "link-local",
			scene: socketScene(sockets.Traits{Family: unix.AF_INET6, Type: unix.SOCK_STREAM, Protocol: unix.IPPROTO_TCP},
				sockets.Inet{Protocol: unix.IPPROTO_TCP, State: sockets.Established, Local: addr("[fe80::1]:22"), Remote: addr("[fe80::2]:4000")}),
			want: []string{"socket tcp ESTAB [fe80::1]:22 [fe80::2]:4000, descriptor 3 of process 100 (svc100): CRIU can't restore connections between IPv6 link-local addresses | have the peer connect to a global or unique local address"},
		},
		{
			name:  "netlink with messages",
			scene: socketScene(sockets.Traits{Family: unix.AF_NETLINK, Type: unix.SOCK_RAW, Unread: true}, sockets.Inet{}),
			want:  []string{"socket netlink socket, descriptor 3 of process 100 (svc100): a netlink socket with unread messages can't be carried | try again in a moment"},
		},
		{
			name: "orphan",
			scene: func() *Scene {
				s := one(func(*proc.Process) {})
				s.Inets = []sockets.Inet{{Protocol: unix.IPPROTO_TCP, State: sockets.FinWait1, Local: addr("10.0.0.1:80"), Remote: addr("10.0.0.2:4000"), SendQueue: 10}}
				return s
			}(),
			want: []string{"orphan tcp FIN-WAIT-1 10.0.0.1:80 10.0.0.2:4000: the service has closed the connection, but its peer has not taken all the data yet; the rest would be lost | try again in a moment"},
		},
		{
			name: "shared between trees",
			scene: func() *Scene {
				a, b := daemon(100), daemon(200)
				a.FDs = []proc.FD{{Num: 3, Target: "socket:[500]", TTY: -1}}
				b.FDs = []proc.FD{{Num: 4, Target: "socket:[500]", TTY: -1}}
				s := scene([]proc.Process{a}, []proc.Process{b})
				s.Traits[500] = tcp
				return s
			}(),
			want: []string{"socket tcp socket, descriptor 4 of process 200 (svc200): the tree of process 100 holds it too, and trees are carried one by one | start both with one parent in the network namespace"},
		},
		{
			name: "unix connection between trees",
			scene: func() *Scene {
				a, b := daemon(100), daemon(200)
				a.FDs = []proc.FD{{Num: 3, Target: "socket:[500]", TTY: -1}}
				b.FDs = []proc.FD{{Num: 4, Target: "socket:[501]", TTY: -1}}
				s := scene([]proc.Process{a}, []proc.Process{b})
				for _, inode := range []uint64{500, 501} {
					s.Traits[inode] = sockets.Traits{Family: unix.AF_UNIX, Type: unix.SOCK_STREAM, NetNS: svcNet}
					s.Unixes = append(s.Unixes, sockets.Unix{Inode: inode, Peer: 1001 - inode, Type: unix.SOCK_STREAM})
				}
				return s
			}(),
			want: []string{
				"socket unix stream, descriptor 3 of process 100 (svc100): it is connected to the tree of process 200, and trees are carried one by one | start both with one parent in the network namespace",
				"socket unix stream, descriptor 4 of process 200 (svc200): it is connected to the tree of process 100, and trees are carried one by one | start both with one parent in the network namespace",
			},
		},
		{
			name: "many of a kind are one problem",
			scene: one(func(p *proc.Process) {
				for i := range 100 {
					p.FDs = append(p.FDs, proc.FD{Num: 5 + i, Target: "anon_inode:[perf_event]", TTY: -1})
				}
			}),
			want: []string{"file anon_inode:[perf_event], descriptor 5 of process 100 (svc100) and 99 more: CRIU can't carry a file of kind perf_event | "},
		},
		{
			name:  "another namespace's file",
			scene: one(func(p *proc.Process) { p.FDs = []proc.FD{{Num: 5, Target: "net:[71]", TTY: -1}} }),
			want:  []string{"file net:[71], descriptor 5 of process 100 (svc100): CRIU can't carry such a file | "},
		},
		{name: "its own namespace's file", scene: one(func(p *proc.Process) { p.FDs = []proc.FD{{Num: 5, Target: "net:[70]", TTY: -1}} })},
		{
			name:  "gpu",
			scene: device("/dev/nvidia0", 195, 0, nil),
			want:  []string{"device /dev/nvidia0, descriptor 5 of process 100 (svc100): the state behind a device can't be carried | "},
		},
		{
			name:  "attached tunnel",
			scene: device("/dev/net/tun", 10, 200, func(f *proc.FD) { f.Tun = "tap0" }),
			want:  []string{"device /dev/net/tun, descriptor 5 of process 100 (svc100): it is attached to the interface tap0 and can't be attached again | stop the tunnel's program before the dump and start it after the restore"},
		},
		{
			name:  "block device",
			scene: device("/dev/sda", 8, 0, func(f *proc.FD) { f.Mode = unix.S_IFBLK }),
			want:  []string{"device /dev/sda, descriptor 5 of process 100 (svc100): a block device can't be carried | "},
		},
		{name: "urandom", scene: device("/dev/urandom", 1, 9, nil)},
		{
			name: "deleted file of another mount namespace",
			scene: one(func(p *proc.Process) {
				p.FDs = []proc.FD{{Num: 1, Target: "/tmp/x (deleted)", Mode: unix.S_IFREG, MntID: 99, TTY: -1}}
			}),
			want: []string{"file /tmp/x (deleted), descriptor 1 of process 100 (svc100): it is deleted, and was opened in another mount namespace | restart the service with its output in a file that exists"},
		},
		{
			name: "below another mount",
			scene: func() *Scene {
				s := one(func(p *proc.Process) {
					p.FDs = []proc.FD{{Num: 4, Target: "/sys/x", Mode: unix.S_IFREG, MntID: 22, Nlink: 1, TTY: -1}}
				})
				s.Trees[0].Mounts = append(slices.Clone(hostMounts), proc.Mount{ID: 30, Parent: 22, Dev: "0:50", Root: "/", Point: "/sys", Type: "sysfs"})
				return s
			}(),
			want: []string{"file /sys/x, descriptor 4 of process 100 (svc100): it lies below another mount on /sys | open it again, e.g. by a reload of the service"},
		},
		{
			name: "memory of the kernel and of devices",
			scene: one(func(p *proc.Process) {
				p.Files = []proc.FileMap{
					{Path: "/usr/lib/libc.so", Exec: true},
					{Path: "/dev/zero", Deleted: true, Shared: true},
					{Path: "/memfd:x", Deleted: true},
					{Path: "anon_inode:[io_uring]"},
					{Path: "/dev/dri/card0"},
					{Path: "/SYSV0000002a", Deleted: true},
				}
			}),
			want: []string{
				"memory mapping of anon_inode:[io_uring] by process 100 (svc100): CRIU can't carry what the kernel keeps behind this mapping | ",
				"memory mapping of /dev/dri/card0 by process 100 (svc100): the memory of a device can't be carried | ",
				"memory System V shared memory SYSV0000002a of process 100 (svc100): it belongs to the host's IPC namespace | start the service in an IPC namespace of its own (unshare --ipc)",
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, p := range Classify(tt.scene, tt.root).Problems {
				got = append(got, fmt.Sprintf("%s %s: %s | %s", p.Kind, p.Object, p.Reason, p.Remedy))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

// What lies outside is recognised by who holds which end.
func TestClassifyExternals(t *testing.T) {
	parent, child := daemon(100), daemon(101)
	child.PPID, child.NSpgid, child.NSsid = 100, []int{100}, []int{100}
	parent.FDs = []proc.FD{
		{Num: 0, Target: "/dev/null", Mode: unix.S_IFCHR, Rdev: unix.Mkdev(1, 3), MntID: 99, Ino: 0x3f, Nlink: 1, Flags: unix.O_RDONLY, TTY: -1},
		{Num: 1, Target: "/dev/null", Mode: unix.S_IFCHR, Rdev: unix.Mkdev(1, 3), MntID: 99, Ino: 0x3f, Nlink: 1, Flags: unix.O_WRONLY, TTY: -1},
		{Num: 2, Target: "pipe:[300]", Flags: unix.O_WRONLY, TTY: -1},                    // to a logger
		{Num: 3, Target: "pipe:[301]", Flags: unix.O_RDONLY, TTY: -1},                    // from the child
		{Num: 4, Target: "/var/log/x", Mode: unix.S_IFREG, MntID: 20, Nlink: 1, TTY: -1}, // its own
		{Num: 5, Target: "/dev/pts/7", Mode: unix.S_IFCHR, Rdev: unix.Mkdev(136, 7), Dev: 0x18, MntID: 24, Nlink: 1, Flags: unix.O_RDWR, TTY: -1},
		{Num: 6, Target: "/dev/ptmx", Mode: unix.S_IFCHR, Rdev: unix.Mkdev(5, 2), MntID: 23, Nlink: 1, Flags: unix.O_RDWR, TTY: 9},
		{Num: 7, Target: "/dev/pts/9", Mode: unix.S_IFCHR, Rdev: unix.Mkdev(136, 9), Dev: 0x18, MntID: 24, Nlink: 1, Flags: unix.O_RDWR, TTY: -1},
		{Num: 8, Target: "socket:[500]", TTY: -1},
		{Num: 9, Target: "socket:[502]", TTY: -1},
	}
	child.FDs = []proc.FD{
		{Num: 1, Target: "pipe:[301]", Flags: unix.O_WRONLY, TTY: -1},
		{Num: 2, Target: "pipe:[300]", Flags: unix.O_WRONLY, TTY: -1},
		{Num: 3, Target: "socket:[503]", TTY: -1},
		{Num: 4, Target: "socket:[500]", TTY: -1},
	}
	s := scene([]proc.Process{parent, child})
	for _, inode := range []uint64{500, 502, 503} {
		s.Traits[inode] = sockets.Traits{Family: unix.AF_UNIX, Type: unix.SOCK_STREAM, NetNS: svcNet, Peer: "/run/log.sock"}
	}
	s.Unixes = []sockets.Unix{{Inode: 500, Peer: 501}, {Inode: 502, Peer: 503}, {Inode: 503, Peer: 502}}
	found := Classify(s, 0)
	if len(found.Problems) > 0 || len(found.Trees) != 1 {
		t.Fatalf("%+v", found)
	}
	var got []string
	for _, e := range found.Trees[0].Externals {
		got = append(got, fmt.Sprintf("%s %s %s %#o %v", e.Kind, e.Key, e.Path, e.Flags, e.FDs))
	}
	want := []string{
		"file file[63:3f] /dev/null 02 [{100 0} {100 1}]",
		"pipe pipe:[300]  01 [{100 2} {101 2}]",
		"tty tty[8807:18] /dev/pts/7 02 [{100 5}]",
		"socket unix[500] /run/log.sock 0 [{100 8} {101 4}]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !slices.Equal(found.Trees[0].Files, []File{{"/var/log/x", 0}}) {
		t.Errorf("files %+v", found.Trees[0].Files)
	}
}

// The ids that have to be free are those that CRIU will make; a root that joins a session leaves its starter's.
func TestClassifyIDs(t *testing.T) {
	leader := daemon(100)
	leader.Threads = append(leader.Threads, proc.Thread{TID: 105, NSTID: 105, NetNS: svcNet})
	group := daemon(110)
	group.NSpgid, group.NSsid = []int{104}, []int{100} // the leader of the group has ended
	f := Classify(scene([]proc.Process{leader, group}), 0).Trees[0]
	if !slices.Equal(f.IDs, []int{100, 104, 105, 110}) || f.ShellJob {
		t.Errorf("session leader: %+v", f)
	}
	job := daemon(100)
	job.NSpgid, job.NSsid = []int{100}, []int{50}
	part := daemon(101)
	part.NSpgid, part.NSsid = []int{100}, []int{50}
	f = Classify(scene([]proc.Process{job, part}), 0).Trees[0]
	if !slices.Equal(f.IDs, []int{100, 101}) || !f.ShellJob {
		t.Errorf("job of a shell: %+v", f)
	}
}

// The mounts of a service need places of the host: what the host shows there, and what they stand on.
func TestPlaces(t *testing.T) {
	host := append(slices.Clone(hostMounts),
		proc.Mount{ID: 30, Parent: 20, Dev: "0:30", Root: "/", Point: "/data", Type: "tmpfs"},
		proc.Mount{ID: 31, Parent: 20, Dev: "0:30", Root: "/sub", Point: "/again", Type: "tmpfs"},
		proc.Mount{ID: 32, Parent: 20, Dev: "0:4", Root: "net:[1]", Point: "/run/netns/a", Type: "nsfs"})
	own := []proc.Mount{
		{ID: 40, Dev: "8:1", Root: "/", Point: "/", Type: "ext4"},
		{ID: 41, Parent: 40, Dev: "0:99", Root: "/", Point: "/proc", Type: "proc"},
		{ID: 42, Parent: 40, Dev: "0:30", Root: "/", Point: "/data", Type: "tmpfs"},
		{ID: 43, Parent: 40, Dev: "0:30", Root: "/sub/below", Point: "/bound", Type: "tmpfs"},
		{ID: 44, Parent: 40, Dev: "8:1", Root: "/srv/conf", Point: "/etc/conf", Type: "ext4"},
		{ID: 45, Parent: 40, Dev: "0:50", Root: "/", Point: "/private", Type: "tmpfs"},
		{ID: 46, Parent: 45, Dev: "0:51", Root: "/", Point: "/private/inner", Type: "tmpfs"},
		{ID: 47, Parent: 40, Dev: "0:30", Root: "/", Point: "/slave", Type: "tmpfs", Optional: []string{"master:5"}},
		{ID: 48, Parent: 40, Dev: "0:4", Root: "net:[1]", Point: "/run/netns/a", Type: "nsfs"},
	}
	want := []string{"/bound", "/data", "/data/sub/below", "/etc/conf", "/private", "/proc", "/slave", "/srv/conf"}
	if got := places(own, host); !slices.Equal(got, want) {
		t.Errorf("places:\n%q, want\n%q", got, want)
	}
	problems := CheckPlaces(t.TempDir(), []Tree{{Places: want[:2]}, {Places: want[:3]}})
	if len(problems) != 1 || problems[0].Object != "/bound /data /data/sub/below" {
		t.Errorf("problems: %v", problems)
	}
}
