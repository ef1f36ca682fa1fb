package sidecar

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
)

// Note is an option that could not be put back.
type Note struct {
	Tree   int    `json:"tree"`
	PID    int    `json:"pid"` // in the tree's own pid namespace
	FD     int    `json:"fd"`
	Option string `json:"option"` // "" is the socket as a whole
	Value  string `json:"value,omitempty"`
	Reason string `json:"reason"`
	More   int    `json:"more,omitempty"` // further sockets of the tree with the same trouble
}

func (n Note) String() string {
	object := fmt.Sprintf("process %d, descriptor %d", n.PID, n.FD)
	if n.More > 0 {
		object += fmt.Sprintf(" and %d more sockets", n.More)
	}
	if n.Option == "" {
		return fmt.Sprintf("socket options of %s: %s", object, n.Reason)
	}
	return fmt.Sprintf("%s=%s of %s: %s", n.Option, n.Value, object, n.Reason)
}

// Apply puts the options of one tree's sockets back: it reads each and sets those that differ. pidOf
// translates a pid of the tree's own pid namespace into that of this process; 0 means it is unknown. The
// right moment is when CRIU has rebuilt all and nothing runs yet (its post-restore hook).
//
// It also repairs the segment size: a connection that CRIU restored sends 524 bytes a segment for ever,
// because the size was computed before the peer's limit was put back. Setting IP_OPTIONS, to what they are,
// computes it anew (inet_connection_sock.icsk_sync_mss; do_ip_setsockopt in net/ipv4/ip_sockglue.c).
//
// Every socket is tried. What could not be set is returned as notes; the error is that of the context.
func (s *Sidecar) Apply(ctx context.Context, tree int, pidOf func(pid int) int) ([]Note, error) {
	var mine []*Socket
	for i := range s.Sockets {
		if s.Sockets[i].Tree == tree {
			mine = append(mine, &s.Sockets[i])
		}
	}
	var mu sync.Mutex
	var notes []Note
	err := sockets.Share(mine, func(some []*Socket) error {
		a := applier{settings: make(map[profileKey][]setting), table: options(), car: s}
		err := a.apply(ctx, some, pidOf)
		mu.Lock()
		defer mu.Unlock()
		for _, n := range a.notes {
			notes = addNote(notes, n)
		}
		return err
	})
	return notes, err
}

// apply puts the options of some sockets back.
func (a *applier) apply(ctx context.Context, some []*Socket, pidOf func(pid int) int) error {
	var lender *sockets.Lender
	holder := 0
	defer func() {
		if lender != nil {
			lender.Close()
		}
	}()
	for _, k := range some {
		if err := ctx.Err(); err != nil {
			return err
		}
		if k.PID != holder {
			if lender != nil {
				lender.Close()
			}
			holder = k.PID
			var err error
			if lender, err = openHolder(pidOf(k.PID)); err != nil {
				a.note(k, "", Value{}, err)
			}
		}
		if lender == nil {
			continue
		}
		fd, err := lender.Borrow(k.FD)
		if err != nil {
			a.note(k, "", Value{}, errors.Unwrap(err))
			continue
		}
		a.socket(fd, k)
		unix.Close(fd)
	}
	return nil
}

func openHolder(pid int) (*sockets.Lender, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("no such process")
	}
	return sockets.OpenLender(pid)
}

// setting is an option with the bytes it shall have.
type setting struct {
	*option
	want []byte
}

type profileKey struct {
	profile int
	class   class
	family  int
}

type applier struct {
	car      *Sidecar
	table    []option
	settings map[profileKey][]setting
	notes    []Note
	buf      [64]byte
}

func (a *applier) note(k *Socket, option string, v Value, err error) {
	n := Note{Tree: k.Tree, PID: k.PID, FD: k.FD, Option: option, Reason: err.Error()}
	if option != "" {
		n.Value = v.String()
	}
	a.notes = addNote(a.notes, n)
}

// addNote adds a note to others, and to the number of one that says the same.
func addNote(notes []Note, n Note) []Note {
	for i := range notes {
		if same := &notes[i]; same.Option == n.Option && same.Value == n.Value && same.Reason == n.Reason {
			same.More += 1 + n.More
			return notes
		}
	}
	return append(notes, n)
}

// of returns the settings of a socket, worked out once for all that are alike.
func (a *applier) of(k *Socket) []setting {
	class := classOf(k)
	key := profileKey{k.Profile, class, k.Family}
	if list, ok := a.settings[key]; ok {
		return list
	}
	var list []setting
	for i := range a.table {
		o := &a.table[i]
		v, ok := a.car.Profiles[k.Profile][o.name]
		if !ok || !o.applies(class, k.Family) {
			continue
		}
		if b, err := o.encode(v); err == nil {
			list = append(list, setting{o, b})
		}
	}
	if class == tcpConn && !slices.ContainsFunc(list, func(s setting) bool { return s.number == unix.IP_OPTIONS && s.level == unix.IPPROTO_IP }) {
		for i := range a.table {
			if o := &a.table[i]; o.name == "IP_OPTIONS" {
				list = append(list, setting{o, nil})
			}
		}
	}
	a.settings[key] = list
	return list
}

func (a *applier) socket(fd int, k *Socket) {
	connected := classOf(k) == tcpConn
	for _, s := range a.of(k) {
		n, err := getsockopt(fd, s.level, s.number, a.buf[:s.size()])
		if err == nil {
			if same(s, a.buf[:n]) && !(connected && s.kind == blob) {
				continue
			}
			if s.isReuseAddr() && a.buf[0] == forceReuse {
				continue
			}
			err = setsockopt(fd, s.level, s.number, s.want)
		}
		if err != nil {
			v, _ := s.decode(s.want)
			a.note(k, s.name, v, err)
		}
	}
	if connected && k.MSS > 0 {
		// Restored as closed, it sends nothing any more.
		if state, mss, err := tcpState(fd); err == nil && sockets.State(state) != sockets.Close && int(mss) < k.MSS {
			a.note(k, "TCP_MAXSEG", Value{Num: int64(k.MSS)}, fmt.Errorf("the connection sends %d bytes a segment", mss))
		}
	}
}

// same reports whether the kernel's value is the wanted one; a text ends at its first NUL.
func same(s setting, got []byte) bool {
	if s.kind == text {
		if i := bytes.IndexByte(got, 0); i >= 0 {
			got = got[:i]
		}
	}
	return bytes.Equal(got, s.want)
}
