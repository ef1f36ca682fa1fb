package proc

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// write makes a fixture of /proc: contents by path, links begin with "->".
func write(t *testing.T, files map[string]string) Dir {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return Dir(dir)
}

// process returns the files of one process of a fixture.
func process(pid, ppid int, state byte, nspid string, netns int) map[string]string {
	p := fmt.Sprint(pid)
	status := fmt.Sprintf("Name:\tproc%d\nState:\t%c (state)\nTgid:\t%d\nPid:\t%d\nPPid:\t%d\nTracerPid:\t0\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nNSpid:\t%s\nNSpgid:\t%s\nNSsid:\t%s\n",
		pid, state, pid, pid, ppid, nspid, nspid, nspid)
	files := map[string]string{p + "/status": status}
	if state == 'Z' {
		return files
	}
	for name, content := range map[string]string{
		"/task/" + p + "/status": status, "/task/" + p + "/ns/net": fmt.Sprintf("->net:[%d]", netns),
		"/cmdline": fmt.Sprintf("/bin/proc%d\x00-v\x00", pid), "/stat": "1 (a) b) S 1 1 1 34816 -1", "/maps": "", "/mountinfo": "", "/fd/x": "", "/fdinfo/x": "",
		"/exe": "->/bin/proc", "/cwd": "->/", "/root": "->/",
		"/ns/net": fmt.Sprintf("->net:[%d]", netns), "/ns/mnt": "->mnt:[1]", "/ns/pid": "->pid:[2]",
		"/ns/user": "->user:[3]", "/ns/uts": "->uts:[4]", "/ns/ipc": "->ipc:[5]", "/ns/cgroup": "->cgroup:[6]", "/ns/time": "->time:[7]",
	} {
		files[p+name] = content
	}
	return files
}

func join(parts ...map[string]string) map[string]string {
	all := make(map[string]string)
	for _, p := range parts {
		maps.Copy(all, p)
	}
	return all
}

func TestRead(t *testing.T) {
	files := process(42, 1, 'S', "42\t7", 99)
	files["42/status"] = `Name:	odd\040name
Umask:	0022
State:	S (sleeping)
Tgid:	42
Pid:	42
PPid:	1
TracerPid:	13
Uid:	1000	1001	1002	1003
Gid:	10	11	12	13
NStgid:	42	7
NSpid:	42	7
NSpgid:	40	0
NSsid:	40	0
Kthread:	0
CapPrm:	000001fffeffffff
Seccomp:	2
FutureKey:	whatever
`
	files["42/task/43/status"] = strings.Replace(process(43, 1, 'S', "43\t8", 0)["43/status"], "Tgid:\t43", "Tgid:\t42", 1)
	files["42/task/43/ns/net"] = "->net:[98]"
	files["42/task/9/status"] = process(9, 1, 'S', "9\t2", 0)["9/status"]
	files["42/exe"] = "->/usr/bin/odd name (deleted)"
	files["42/cmdline"] = "odd name\x00\x00-x\x00"
	files["42/fd/0"] = "->/dev/null"
	files["42/fdinfo/0"] = "pos:\t12\nflags:\t0100001\nmnt_id:\t24\nino:\t3\n"
	files["42/fd/3"] = "->socket:[31337]"
	files["42/fdinfo/3"] = "pos:\t0\nflags:\t02000002\nmnt_id:\t9\nino:\t31337\n"
	files["42/fd/10"] = "->anon_inode:[eventpoll]"
	files["42/fdinfo/10"] = "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1057\ntfd:        3 events:       19 data:                3  pos:0 ino:7a69 sdev:9\n"
	files["42/fd/11"] = "->anon_inode:inotify"
	files["42/fdinfo/11"] = "pos:\t0\nflags:\t00\nmnt_id:\t15\nino:\t1057\ninotify wd:1 ino:2 sdev:800001 mask:fce ignored_mask:0 fhandle-bytes:8\n"
	files["42/fd/12"] = "->/dev/ptmx"
	files["42/fdinfo/12"] = "pos:\t0\nflags:\t0104002\nmnt_id:\t26\nino:\t2\ntty-index:\t5\n"
	files["42/fd/13"] = "->/dev/net/tun"
	files["42/fdinfo/13"] = "pos:\t0\nflags:\t0104002\nmnt_id:\t24\nino:\t9\niff:\ttap0\n"
	files["42/maps"] = `00400000-00401000 r--s 00000000 fe:00 7                          /low
55aac5623000-55aac5625000 r--p 00000000 fe:00 247766                     /usr/bin/odd name
55aac5625000-55aac562a000 r-xp 00002000 fe:00 247766                     /usr/bin/odd name
55aac562d000-55aac562e000 rw-p 00000000 00:00 0 
7fd37894f000-7fd378950000 rw-p 00000000 00:00 0                          [anon:arena]
7fd378948000-7fd37894f000 r--s 00000000 fe:00 325737                     /usr/lib/cache
7fd378960000-7fd378961000 rw-s 00000000 00:01 5                          /memfd:x (deleted)
7fd378970000-7fd378971000 rw-s 00000000 00:0f 1057                       anon_inode:[io_uring]
7ffc58a87000-7ffc58aa8000 rw-p 00000000 00:00 0                          [stack]
`
	d := write(t, files)
	got, err := d.Read(42)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got.FDs { // the links of the fixture lead to real files or to none
		got.FDs[i].Mode, got.FDs[i].Dev, got.FDs[i].Rdev, got.FDs[i].Nlink, got.FDs[i].Size = 0, 0, 0, 0, 0
		if strings.HasPrefix(got.FDs[i].Target, "/dev/") {
			got.FDs[i].Ino = 0
		}
	}
	want := Process{
		PID: 42, PPID: 1, State: 'S', Tracer: 13,
		NSpid: []int{42, 7}, NSpgid: []int{40, 0}, NSsid: []int{40, 0},
		Threads: []Thread{{42, 7, 99}, {9, 2, 0}, {43, 8, 98}},
		Comm:    "odd name", Cmdline: []string{"odd name", "", "-x"},
		Exe: "/usr/bin/odd name (deleted)", Cwd: "/", Root: "/",
		UIDs: [4]int{1000, 1001, 1002, 1003}, GIDs: [4]int{10, 11, 12, 13}, Permitted: 0x1fffeffffff, Terminal: 34816, Seccomp: 2,
		NS: Namespaces{Cgroup: 6, IPC: 5, Mnt: 1, Net: 99, PID: 2, Time: 7, User: 3, UTS: 4},
		FDs: []FD{
			{Num: 0, Target: "/dev/null", Flags: 0o100001, Pos: 12, MntID: 24, TTY: -1},
			{Num: 3, Target: "socket:[31337]", Flags: 0o2000002, MntID: 9, Ino: 31337, TTY: -1},
			{Num: 10, Target: "anon_inode:[eventpoll]", Flags: 2, MntID: 15, Ino: 1057, TTY: -1},
			{Num: 11, Target: "anon_inode:inotify", MntID: 15, Ino: 1057, TTY: -1},
			{Num: 12, Target: "/dev/ptmx", Flags: 0o104002, MntID: 26, TTY: 5},
			{Num: 13, Target: "/dev/net/tun", Flags: 0o104002, MntID: 24, TTY: -1, Tun: "tap0"},
		},
		Files: []FileMap{
			{Path: "/low", Range: "400000-401000", Ino: 7, Shared: true}, // as the kernel names it in map_files
			{Path: "/usr/bin/odd name", Range: "55aac5623000-55aac5625000", Ino: 247766, Exec: true},
			{Path: "/usr/lib/cache", Range: "7fd378948000-7fd37894f000", Ino: 325737, Shared: true},
			{Path: "/memfd:x", Range: "7fd378960000-7fd378961000", Ino: 5, Shared: true, Written: true, Deleted: true},
			{Path: "anon_inode:[io_uring]", Range: "7fd378970000-7fd378971000", Ino: 1057, Shared: true, Written: true},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	if _, err := d.Read(1); !errors.Is(err, ErrGone) {
		t.Errorf("no such process: %v", err)
	}
}

func TestMounts(t *testing.T) {
	d := write(t, map[string]string{"5/mountinfo": `22 27 0:21 / /proc rw,relatime - proc proc rw
36 35 98:0 /mnt1 /mnt\0402 rw,noatime shared:1 master:2 propagate_from:3 - ext3 /dev/root rw,errors=continue
40 27 0:4 net:[4026532602] /run/netns/a rw - nsfs nsfs rw
`})
	got, err := d.Mounts(5)
	want := []Mount{
		{22, 27, "0:21", "/", "/proc", "rw,relatime", nil, "proc", "proc"},
		{36, 35, "98:0", "/mnt1", "/mnt 2", "rw,noatime", []string{"shared:1", "master:2", "propagate_from:3"}, "ext3", "/dev/root"},
		{40, 27, "0:4", "net:[4026532602]", "/run/netns/a", "rw", nil, "nsfs", "nsfs"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestGroups(t *testing.T) {
	const in, out = 7, 8
	for _, tt := range []struct {
		name  string
		table []Entry
		want  []Group
	}{
		{"none", []Entry{{PID: 1, NetNS: out}}, nil},
		{
			"two trees, a zombie, a stray",
			[]Entry{
				{PID: 1, NetNS: out},
				{PID: 20, PPID: 1, NetNS: in},
				{PID: 10, PPID: 1, NetNS: in},
				{PID: 11, PPID: 10, NetNS: in},
				{PID: 12, PPID: 11, NetNS: in},
				{PID: 13, PPID: 10, Zombie: true},
				{PID: 14, PPID: 10, NetNS: out},
				{PID: 15, PPID: 1, Zombie: true},
			},
			[]Group{
				{Root: 10, Members: []int{10, 11, 13, 12}, Strays: []int{14}},
				{Root: 20, Members: []int{20}},
			},
		},
		{
			"unshare and its pid namespace",
			[]Entry{{PID: 10, PPID: 1, NetNS: in}, {PID: 11, PPID: 10, NetNS: in, Init: true}, {PID: 12, PPID: 11, NetNS: in}},
			[]Group{{Root: 10, Members: []int{10}, Inits: []int{11}}, {Root: 11, Members: []int{11, 12}}},
		},
		{
			"a parent that the /proc does not show",
			[]Entry{{PID: 5, PPID: 0, NetNS: in}},
			[]Group{{Root: 5, Members: []int{5}}},
		},
	} {
		if got := Groups(tt.table, in); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestTrees(t *testing.T) {
	d := write(t, join(
		process(1, 0, 'S', "1", 8),
		process(10, 1, 'S', "10", 7),
		process(11, 10, 'Z', "11", 0),
		process(12, 10, 'T', "12", 7),
		process(13, 10, 'S', "13", 8),
		process(20, 10, 'S', "20\t1", 7),
	))
	trees, err := d.Trees(7)
	if err != nil {
		t.Fatal(err)
	}
	if len(trees) != 2 {
		t.Fatalf("%d trees", len(trees))
	}
	first, second := &trees[0], &trees[1]
	if got := first.PIDs(); !slices.Equal(got, []int{10, 11, 12}) || first.PIDNS() || len(first.Strays) != 1 || !slices.Equal(first.Inits, []int{20}) {
		t.Errorf("first tree %+v", first)
	}
	if !first.Processes[1].Zombie() || !first.Processes[2].Stopped() {
		t.Errorf("states %c, %c", first.Processes[1].State, first.Processes[2].State)
	}
	if got := second.PIDs(); !slices.Equal(got, []int{20}) || !second.PIDNS() {
		t.Errorf("second tree %+v", second)
	}
	list, err := d.InNetNS(7)
	if err != nil || len(list) != 3 {
		t.Errorf("processes %+v, %v", list, err)
	}
}

// What is read of a real process is what the process knows of itself.
func TestSelf(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteString("hello")
	p, err := Default.Read(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if p.PID != os.Getpid() || p.PPID != os.Getppid() || p.Threads[0].TID != p.PID || Own(p.NSsid) < 0 {
		t.Errorf("%+v", p)
	}
	i := slices.IndexFunc(p.FDs, func(fd FD) bool { return fd.Target == f.Name() })
	if i < 0 {
		t.Fatalf("%s is not open", f.Name())
	}
	if fd := p.FDs[i]; fd.Pos != 5 || fd.Size != 5 || fd.Flags&unix.O_ACCMODE != unix.O_RDWR || fd.Nlink != 1 {
		t.Errorf("%+v", fd)
	}
	table, err := Default.Table()
	if err != nil || slices.ContainsFunc(table, func(e Entry) bool { return e.PID == os.Getpid() || e.PID == 2 && e.PPID == 0 && e.NetNS == 0 }) {
		t.Errorf("table %+v, %v", table, err)
	}
}

// A zombie is read for its ids only.
func TestZombie(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	for {
		p, err := Default.Read(cmd.Process.Pid)
		if err != nil && !errors.Is(err, ErrGone) { // which it is between its end and its zombie
			t.Fatal(err)
		}
		if p.Zombie() {
			if p.PPID != os.Getpid() || p.Comm != "true" || len(p.FDs) > 0 {
				t.Errorf("%+v", p)
			}
			return
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("Name:\tx\nPid:\t1\nState:\tS (sleeping)\nNSsid:\t1 0\n"))
	f.Add([]byte("pos:\t0\nflags:\t02\ntfd: 3 events: 19\n"))
	f.Add([]byte("1-2 r-xp 0 fe:00 1 /a\\040b (deleted)\n"))
	f.Add([]byte("36 35 98:0 /mnt1 /mnt2 rw shared:1 - ext3 /dev/root rw\n"))
	f.Add([]byte("net:[1]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Process
		if _, err := parseStatus(&p, b); err == nil && (p.PID <= 0 || len(p.NSpid) == 0) {
			t.Errorf("status accepted: %+v", p)
		}
		var fd FD
		_ = parseFDInfo(&fd, b)
		maps, err := parseMaps(b)
		if err != nil && maps != nil {
			t.Error("mappings and an error")
		}
		mappedFiles(maps)
		if mounts, err := parseMountinfo(b); err != nil && mounts != nil {
			t.Error("mounts and an error")
		}
		Inode(string(b), "net")
	})
}

// A tree that has changed since it was read is brought up to date.
func TestRefresh(t *testing.T) {
	files := join(process(10, 1, 'S', "10", 7), process(11, 10, 'S', "11", 7), process(12, 11, 'S', "12", 7))
	files["10/task/10/children"] = "11 "
	files["11/task/11/children"] = "12 "
	files["12/task/12/children"] = ""
	d := write(t, files)
	trees, err := d.Trees(7)
	if err != nil || len(trees) != 1 {
		t.Fatalf("%+v, %v", trees, err)
	}
	tree := &trees[0]
	tree.Processes[0].Comm = "known"
	// 12 ends, 13 is new, 11 has another thread.
	dir := string(d)
	if err := os.RemoveAll(filepath.Join(dir, "12")); err != nil {
		t.Fatal(err)
	}
	more := process(13, 10, 'S', "13", 7)
	more["10/task/10/children"] = "11 13 "
	more["11/task/11/children"] = "12 "
	more["11/task/14/status"] = process(14, 10, 'S', "14", 7)["14/status"]
	more["13/task/13/children"] = ""
	for name, content := range more {
		path := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if target, ok := strings.CutPrefix(content, "->"); ok {
			os.Symlink(target, path)
		} else {
			os.WriteFile(path, []byte(content), 0o644)
		}
	}
	if err := d.Refresh(tree); err != nil {
		t.Fatal(err)
	}
	if got := tree.PIDs(); !slices.Equal(got, []int{10, 11, 13}) {
		t.Errorf("processes %v", got)
	}
	if tree.Processes[0].Comm != "known" || tree.Processes[2].Comm != "proc13" {
		t.Errorf("names %s, %s", tree.Processes[0].Comm, tree.Processes[2].Comm)
	}
	if got := tree.Processes[1].Threads; len(got) != 2 || got[1].NSTID != 14 {
		t.Errorf("threads %+v", got)
	}
	os.RemoveAll(filepath.Join(dir, "10"))
	if err := d.Refresh(tree); !errors.Is(err, ErrGone) {
		t.Errorf("without the root: %v", err)
	}
}
