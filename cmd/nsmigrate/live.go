package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// liveTrees looks at the processes of a namespace, which notice nothing, and shows them as an image of them
// would. What no process holds is listed apart: connections that wait to be accepted or to be forgotten.
func liveTrees(ctx context.Context, n *ns.NS) (trees []treeView, unheld []criu.SocketView, err error) {
	socks, order, err := liveSockets(ctx, n)
	if err != nil {
		return nil, nil, err
	}
	found, err := proc.Default.Trees(n.Inode())
	if err != nil {
		return nil, nil, err
	}
	trees = []treeView{}
	for i := range found {
		trees = append(trees, liveTree(&found[i], socks))
	}
	for _, s := range order {
		if s.Holders == nil && s.Protocol != "unix" {
			unheld = append(unheld, *s)
		}
	}
	return trees, unheld, nil
}

// liveSockets lists the sockets of a namespace, in the kernel's order and by inode.
func liveSockets(ctx context.Context, n *ns.NS) (byInode map[uint64]*criu.SocketView, order []*criu.SocketView, err error) {
	byInode = make(map[uint64]*criu.SocketView)
	add := func(inode uint64, s criu.SocketView) {
		order = append(order, &s)
		if inode != 0 {
			byInode[inode] = &s
		}
	}
	inets, err := sockets.Inets(ctx, n)
	if err != nil {
		return nil, nil, err
	}
	for _, s := range inets {
		v := criu.SocketView{
			Protocol: "tcp", Type: "stream", State: s.State.String(), Local: s.Local.String(), Remote: s.Remote.String(),
			Recv: int64(s.RecvQueue), Send: int64(s.SendQueue),
		}
		if s.Protocol == unix.IPPROTO_UDP {
			v.Protocol, v.Type = "udp", "dgram"
		}
		if s.State == sockets.Listen { // what the kernel reports of a listener are connections
			v.Recv, v.Send = 0, 0
		}
		add(s.Inode, v)
	}
	unixes, err := sockets.Unixes(ctx, n)
	if err != nil {
		return nil, nil, err
	}
	types := map[int]string{unix.SOCK_STREAM: "stream", unix.SOCK_DGRAM: "dgram", unix.SOCK_SEQPACKET: "seqpacket"}
	for _, s := range unixes {
		v := criu.SocketView{Protocol: "unix", Type: types[s.Type], State: s.State.String(), Local: s.Name, Recv: int64(s.RecvQueue)}
		if s.State == sockets.Listen {
			v.Recv = 0
		}
		add(s.Inode, v)
	}
	return byInode, order, nil
}

func liveTree(t *proc.Tree, socks map[uint64]*criu.SocketView) treeView {
	v := treeView{Root: proc.Own(t.Root().NSpid), TreeView: &criu.TreeView{}}
	var order []*criu.SocketView
	own := make(map[int]int) // ids as the tree sees them
	for _, p := range t.Processes {
		own[p.PID] = proc.Own(p.NSpid)
	}
	for _, p := range t.Processes {
		task := liveTask(&p)
		task.PPID = own[p.PPID]
		v.Memory += task.Memory
		v.Tasks = append(v.Tasks, task)
		for _, fd := range p.FDs {
			inode, ok := proc.Inode(fd.Target, "socket")
			s := socks[inode]
			if !ok || s == nil {
				continue
			}
			if s.Holders == nil {
				order = append(order, s)
			}
			s.Holders = append(s.Holders, criu.Holder{PID: task.PID, FD: fd.Num})
		}
	}
	for _, s := range order {
		v.Sockets = append(v.Sockets, *s)
	}
	return v
}

func liveTask(p *proc.Process) criu.Task {
	t := criu.Task{
		PID: proc.Own(p.NSpid), PGID: proc.Own(p.NSpgid), SID: proc.Own(p.NSsid), State: "running",
		Comm: p.Comm, Cmdline: p.Cmdline, Memory: liveMemory(p.PID),
	}
	switch {
	case p.Zombie():
		t.State = "zombie"
	case p.Stopped():
		t.State = "stopped"
	}
	for _, thread := range p.Threads {
		t.Threads = append(t.Threads, thread.NSTID)
	}
	return t
}

// liveMemory is about what a dump would save of a process: memory that is in no file (proc_pid_status(5)).
func liveMemory(pid int) int64 {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	var sum int64
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		switch name {
		case "RssAnon", "RssShmem", "VmSwap":
			var kib int64
			fmt.Sscan(value, &kib)
			sum += kib << 10
		}
	}
	return sum
}
