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

// Outcome is what [Sidecar.Apply] has found.
type Outcome struct {
	Notes []Note
	// Waiting are descriptors of connections, by process in the tree's own pid namespace, that have something for their peers
	// which those have not acknowledged, or were not ready to take.
	Waiting map[int][]int
}

// Apply puts the options of one tree's sockets back: it reads each and sets those that differ. pidOf
// translates a pid of the tree's own pid namespace into that of this process; 0 means it is unknown. The
// right moment is when CRIU has rebuilt all and nothing runs yet (its post-restore hook).
//
// It also repairs the segment size: a connection that CRIU restored sends 524 bytes a segment for ever,
// because the size was computed before the peer's limit was put back. Setting IP_OPTIONS, to what they are,
// computes it anew (inet_connection_sock.icsk_sync_mss; do_ip_setsockopt in net/ipv4/ip_sockglue.c).
//
// Of thousands of connections most have most of the kernel's defaults. fresh makes a TCP socket of a family that has them, in
// the sockets' namespace: what such a one has, and the first connection with the same options too, is not looked at on the
// others. fresh may be nil.
//
// Every socket is tried. What could not be set is told; the error is that of the context.
func (s *Sidecar) Apply(ctx context.Context, tree int, pidOf func(pid int) int, fresh func(family int) (int, error)) (*Outcome, error) {
	var mine []*Socket
	for i := range s.Sockets {
		if s.Sockets[i].Tree == tree {
			mine = append(mine, &s.Sockets[i])
		}
	}
	var mu sync.Mutex
	all := &Outcome{Waiting: make(map[int][]int)}
	err := sockets.Share(mine, func(some []*Socket) error {
		a := applier{settings: make(map[profileKey][]setting), defaults: make(map[int][][]byte), table: options(), car: s, fresh: fresh}
		a.Waiting = make(map[int][]int)
		err := a.apply(ctx, some, pidOf)
		mu.Lock()
		defer mu.Unlock()
		for _, n := range a.Notes {
			all.Notes = addNote(all.Notes, n)
		}
		for pid, fds := range a.Waiting {
			all.Waiting[pid] = append(all.Waiting[pid], fds...)
		}
		return err
	})
	return all, err
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
	Outcome
	car      *Sidecar
	table    []option
	settings map[profileKey][]setting
	fresh    func(family int) (int, error)
	defaults map[int][][]byte // of a TCP socket, by family and as in the table; nil if they are not known
	buf      [64]byte
}

func (a *applier) note(k *Socket, option string, v Value, err error) {
	n := Note{Tree: k.Tree, PID: k.PID, FD: k.FD, Option: option, Reason: err.Error()}
	if option != "" {
		n.Value = v.String()
	}
	a.Notes = addNote(a.Notes, n)
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

// of returns the settings of a socket, worked out once for all that are alike; first says that this is the first of them.
func (a *applier) of(k *Socket) (key profileKey, list []setting, first bool) {
	class := classOf(k)
	key = profileKey{k.Profile, class, k.Family}
	if list, ok := a.settings[key]; ok {
		return key, list, false
	}
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
	return key, list, true
}

// usual reports whether the kernel gives every TCP socket the wanted value.
func (a *applier) usual(s setting, family int) bool {
	if a.fresh == nil {
		return false
	}
	values, ok := a.defaults[family]
	if !ok {
		if fd, err := a.fresh(family); err == nil {
			values = a.read(fd, family)
			unix.Close(fd)
		}
		a.defaults[family] = values
	}
	for i, b := range values {
		if a.table[i].name == s.name {
			return b != nil && same(s, b)
		}
	}
	return false
}

// read returns the values of a connection's options, in the order of the table; nil stands for one that it does not have.
func (a *applier) read(fd, family int) [][]byte {
	values := make([][]byte, len(a.table))
	for i := range a.table {
		if o := &a.table[i]; o.applies(tcpConn, family) {
			if n, err := getsockopt(fd, o.level, o.number, a.buf[:o.size()]); err == nil {
				values[i] = append([]byte{}, a.buf[:n]...)
			}
		}
	}
	return values
}

func (a *applier) socket(fd int, k *Socket) {
	connected := classOf(k) == tcpConn
	key, list, first := a.of(k)
	var others []setting // that the next connections like this one have to be asked for
	for _, s := range list {
		had := a.set(fd, k, s, connected)
		if first && (!had || s.each() || !a.usual(s, k.Family)) {
			others = append(others, s)
		}
	}
	if !connected {
		return
	}
	if first {
		a.settings[key] = others
	}
	info, err := tcpInfo(fd)
	if err != nil || sockets.State(info.State) == sockets.Close { // restored as closed, it sends nothing any more
		return
	}
	if mss := int(info.Snd_mss); mss < k.MSS {
		a.note(k, "TCP_MAXSEG", Value{Num: int64(k.MSS)}, fmt.Errorf("the connection sends %d bytes a segment", mss))
	}
	if info.Unacked > 0 || info.Notsent_bytes > 0 || info.Snd_wnd == 0 {
		a.Waiting[k.PID] = append(a.Waiting[k.PID], k.FD)
	}
}

// set gives an option of a socket the wanted value, and reports whether it had it before.
func (a *applier) set(fd int, k *Socket, s setting, connected bool) (had bool) {
	var err error
	if !connected || s.kind != blob { // which is set in any case
		var n int
		n, err = getsockopt(fd, s.level, s.number, a.buf[:s.size()])
		if err == nil && (same(s, a.buf[:n]) || s.isReuseAddr() && a.buf[0] == forceReuse) {
			return true
		}
	}
	if err == nil {
		err = setsockopt(fd, s.level, s.number, s.want)
	}
	if err != nil {
		v, _ := s.decode(s.want)
		a.note(k, s.name, v, err)
	}
	return false
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
