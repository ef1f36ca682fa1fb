package sidecar

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
)

// Holder is a process whose sockets are captured.
type Holder struct {
	Tree  int // index of its tree
	PID   int // as this process sees it
	NSPID int // in its own pid namespace
	CRIU  int // the process that dumps it, and lends it a socket to take orders from; 0 is none
}

// Holders lists the processes of trees, zombies left out.
func Holders(trees []proc.Tree) []Holder {
	var list []Holder
	for i := range trees {
		for j := range trees[i].Processes {
			if p := &trees[i].Processes[j]; !p.Zombie() {
				list = append(list, Holder{Tree: i, PID: p.PID, NSPID: proc.Own(p.NSpid)})
			}
		}
	}
	return list
}

// Capture reads the options of all sockets of the holders. It may run while they run: a socket that is
// closed meanwhile is left out, and one that is made later is brought in by another Capture, to which the
// first one's result is given as seen: what it has already is taken over and not read again. seen may be
// nil. No error of a single socket makes Capture fail.
func Capture(ctx context.Context, holders []Holder, seen *Sidecar) (*Sidecar, error) {
	c := capturer{
		options:  options(),
		profiles: make(map[string]int),
		done:     make(map[uint64]bool),
		known:    make(map[place]Socket),
		car:      &Sidecar{Version: Version, Profiles: []Profile{}, Sockets: []Socket{}},
	}
	if seen != nil {
		c.car.Profiles = slices.Clone(seen.Profiles)
		for _, s := range seen.Sockets {
			c.known[place{s.Tree, s.PID, s.FD, s.Inode}] = s
		}
	}
	for _, h := range holders {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := c.holder(h); err != nil && !errors.Is(err, proc.ErrGone) && !errors.Is(err, unix.ESRCH) {
			return nil, fmt.Errorf("capture socket options: %w", err)
		}
	}
	return c.car, nil
}

type place struct {
	tree, pid, fd int
	inode         uint64
}

type capturer struct {
	options  []option
	profiles map[string]int  // index by the values' bytes
	done     map[uint64]bool // inodes
	known    map[place]Socket
	car      *Sidecar
	buf      [64]byte
	key      []byte
}

func (c *capturer) holder(h Holder) error {
	held, err := proc.Default.Sockets(h.PID)
	if err != nil {
		return err
	}
	var lender *sockets.Lender
	for _, fd := range slices.Sorted(maps.Keys(held)) {
		inode := held[fd]
		if c.done[inode] {
			continue
		}
		if s, ok := c.known[place{h.Tree, h.NSPID, fd, inode}]; ok {
			c.done[inode] = true
			c.car.Sockets = append(c.car.Sockets, s)
			continue
		}
		if lender == nil {
			if lender, err = sockets.OpenLender(h.PID); err != nil {
				return err
			}
			defer lender.Close()
		}
		own, err := lender.Borrow(fd)
		if err != nil {
			continue // closed meanwhile
		}
		s := Socket{Tree: h.Tree, PID: h.NSPID, FD: fd, Inode: inode}
		if c.socket(own, &s) && !lent(own, &s, h.CRIU) {
			c.done[inode] = true
			c.car.Sockets = append(c.car.Sockets, s)
		}
		unix.Close(own)
	}
	return nil
}

// lent reports whether a socket is one that criu makes in a process to give it orders.
func lent(fd int, s *Socket, criu int) bool {
	if criu == 0 || s.Family != unix.AF_UNIX || s.Type != unix.SOCK_SEQPACKET {
		return false
	}
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return err == nil && int(peer.Pid) == criu
}

// socket reads the options of one borrowed socket; false if it is not the one that was listed, or of a kind
// without options.
func (c *capturer) socket(fd int, s *Socket) bool {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Ino != s.Inode {
		return false
	}
	for _, q := range []struct {
		name int
		into *int
	}{{unix.SO_DOMAIN, &s.Family}, {unix.SO_TYPE, &s.Type}, {unix.SO_PROTOCOL, &s.Protocol}} {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, q.name)
		if err != nil {
			return false
		}
		*q.into = v
	}
	if s.Type == unix.SOCK_STREAM && s.Protocol == unix.IPPROTO_TCP {
		info, err := tcpInfo(fd)
		if err != nil {
			return false
		}
		s.State = sockets.State(info.State)
		if s.State != sockets.Listen && s.State != sockets.Close {
			s.MSS = int(info.Snd_mss)
		}
	}
	class := classOf(s)
	if class == 0 {
		return false
	}
	s.Profile = c.profile(fd, class, s.Family)
	return true
}

// profile reads the options and returns the index of the profile that holds their values.
func (c *capturer) profile(fd int, class class, family int) int {
	type read struct {
		option *option
		from   int
		to     int
	}
	var reads [128]read
	n := 0
	c.key = c.key[:0]
	for i := range c.options {
		o := &c.options[i]
		if !o.applies(class, family) {
			continue
		}
		size, err := getsockopt(fd, o.level, o.number, c.buf[:o.size()])
		if err != nil {
			continue // the kernel does not know it
		}
		if o.isReuseAddr() && c.buf[0] == forceReuse {
			continue // CRIU is at work on the socket: it knows the service's own value
		}
		c.key = append(c.key, byte(i))
		from := len(c.key)
		c.key = append(c.key, c.buf[:min(size, o.size())]...)
		reads[n] = read{o, from, len(c.key)}
		n++
	}
	if i, ok := c.profiles[string(c.key)]; ok {
		return i
	}
	p := make(Profile, n)
	for _, r := range reads[:n] {
		if v, ok := r.option.decode(c.key[r.from:r.to]); ok {
			p[r.option.name] = v
		}
	}
	i := len(c.car.Profiles)
	c.car.Profiles = append(c.car.Profiles, p)
	c.profiles[string(c.key)] = i
	return i
}
