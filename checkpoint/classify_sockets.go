package checkpoint

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
)

// orphans names the connections that no process holds any more and that still have something to deliver.
func (c *classifier) orphans() {
	for _, s := range sockets.Orphans(c.scene.Inets) {
		c.problems.add(0, orphan(s))
	}
}

func orphan(s sockets.Inet) Problem {
	return Problem{
		Kind: "orphan", Object: s.String(),
		Reason: "the service has closed the connection, but its peer has not taken all the data yet; the rest would be lost",
		Remedy: "try again in a moment",
		Loss:   true,
	}
}

// sharedSockets notes which tree holds which socket, and refuses sockets that two trees hold: each tree
// would get one of its own.
func (c *classifier) sharedSockets() {
	for i := range c.scene.Trees {
		root := c.scene.Trees[i].Root().PID
		for j := range c.scene.Trees[i].Processes {
			p := &c.scene.Trees[i].Processes[j]
			for k := range p.FDs {
				inode, ok := proc.Inode(p.FDs[k].Target, "socket")
				if !ok {
					continue
				}
				other, seen := c.holders[inode]
				if !seen {
					c.holders[inode] = root
				} else if other != root {
					c.refuse(p, Problem{
						Kind: "socket", Object: c.socketName(p, &p.FDs[k], inode),
						Reason: fmt.Sprintf("the tree of process %d holds it too, and trees are carried one by one", other),
						Remedy: "start both with one parent in the network namespace",
					})
				}
			}
		}
	}
}

// socket classifies a socket of the tree.
func (x *outside) socket(p *proc.Process, f *proc.FD, inode uint64) {
	t, ok := x.scene.Traits[inode]
	if !ok {
		return // closed meanwhile
	}
	refuse := func(kind, reason, remedy string) {
		x.refuse(p, Problem{Kind: kind, Object: x.socketName(p, f, inode), Reason: reason, Remedy: remedy})
	}
	if t.NetNS != 0 && t.NetNS != x.scene.NetNS {
		refuse("socket", "it was made in another network namespace and can't be made there again",
			"have the service open it itself, or start the service without inherited sockets (for systemd: StandardOutput=file:...)")
		return
	}
	switch t.Family {
	case unix.AF_INET, unix.AF_INET6:
		x.inetSocket(t, inode, refuse)
	case unix.AF_UNIX:
		x.unixSocket(p, f, t, inode, refuse)
	case unix.AF_NETLINK:
		if t.Unread {
			refuse("socket", "a netlink socket with unread messages can't be carried", "try again in a moment")
		}
	case unix.AF_PACKET:
	default:
		refuse("socket", fmt.Sprintf("CRIU can't carry sockets of address family %d", t.Family), "")
	}
}

func (x *outside) inetSocket(t sockets.Traits, inode uint64, refuse func(kind, reason, remedy string)) {
	switch {
	case t.Protocol == unix.IPPROTO_MPTCP:
		refuse("mptcp", "CRIU can't carry MPTCP", "use TCP instead; for a Go program start it with GODEBUG=multipathtcp=0")
		return
	case t.Protocol == unix.IPPROTO_SCTP:
		refuse("sctp", "CRIU can't carry SCTP", "")
		return
	case t.Type == sockDCCP:
		refuse("dccp", "CRIU can't carry DCCP", "")
		return
	case t.Type == unix.SOCK_STREAM && t.Protocol != unix.IPPROTO_TCP,
		t.Type == unix.SOCK_DGRAM && t.Protocol != unix.IPPROTO_UDP && t.Protocol != unix.IPPROTO_UDPLITE &&
			t.Protocol != unix.IPPROTO_ICMP && t.Protocol != unix.IPPROTO_ICMPV6:
		refuse("socket", fmt.Sprintf("CRIU can't carry sockets of protocol %d", t.Protocol), "")
		return
	}
	if t.ULP != "" {
		remedy := ""
		if t.ULP == "tls" {
			remedy = "turn kernel TLS off in the service (for nginx and OpenSSL: ssl_conf_command Options -KTLS)"
		}
		refuse("ktls", fmt.Sprintf("its %s state is in the kernel, which does not give it out", t.ULP), remedy)
	}
	if t.Corked {
		refuse("socket", "it holds a datagram back (UDP_CORK), which would be lost", "try again in a moment")
	}
	if s := x.inets[inode]; s != nil {
		if s.MD5 {
			refuse("socket", "its segments are signed with a key that the kernel does not give out (TCP MD5)", "close the session before the dump")
		}
		if s.LinkLocal() && s.Protocol == unix.IPPROTO_TCP {
			refuse("socket", "CRIU can't restore connections between IPv6 link-local addresses", "have the peer connect to a global or unique local address")
		}
		if s.Protocol == unix.IPPROTO_UDP && s.RecvQueue > 0 {
			x.note("%v has %d bytes that the service has not read: unread datagrams are lost", s, s.RecvQueue)
		}
	}
}

const sockDCCP = 6 // SOCK_DCCP, linux/net.h

func (x *outside) unixSocket(p *proc.Process, f *proc.FD, t sockets.Traits, inode uint64, refuse func(kind, reason, remedy string)) {
	s := x.unixes[inode]
	if s == nil || s.Peer == 0 || x.holders[s.Peer] == x.tree.Root().PID {
		return
	}
	if other, ok := x.holders[s.Peer]; ok {
		refuse("socket", fmt.Sprintf("it is connected to the tree of process %d, and trees are carried one by one", other),
			"start both with one parent in the network namespace")
		return
	}
	if t.Peer == "" {
		refuse("socket", "it is connected to a process outside of the service, at no address where it could connect again", "end that connection first")
		return
	}
	if t.Type == unix.SOCK_DGRAM { // syslog's: CRIU would look for the peer, but it can be connected from outside
		x.external(p, f, External{Kind: KindDatagram, Key: fmt.Sprintf("unix[%d]", inode), Path: t.Peer})
		return
	}
	x.external(p, f, External{Kind: "socket", Key: fmt.Sprintf("unix[%d]", inode), Path: t.Peer})
}

// socketName names a socket as ss(8) does, with its holder.
func (c *classifier) socketName(p *proc.Process, f *proc.FD, inode uint64) string {
	name := c.scene.Traits[inode].String()
	if s := c.inets[inode]; s != nil {
		name = s.String()
		if c.scene.Traits[inode].Protocol == unix.IPPROTO_MPTCP {
			name = "mp" + name // sock_diag shows its first subflow
		}
	} else if u := c.unixes[inode]; u != nil {
		name = u.String()
	}
	return fmt.Sprintf("%s, descriptor %d of %s", name, f.Num, who(p))
}
