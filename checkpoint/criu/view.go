package criu

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	sk_inet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	sk_packet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-packet"
	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	tcp_stream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"
	"golang.org/x/sys/unix"
)

// TreeView is what people want to know of a dumped tree.
type TreeView struct {
	Tasks   []Task       `json:"tasks"` // parents before children, as CRIU lists them
	Sockets []SocketView `json:"sockets"`
	Memory  int64        `json:"memory"` // bytes of all saved pages
}

// Task is a process of a dumped tree. Ids are those of the root's pid namespace.
type Task struct {
	PID     int      `json:"pid"`
	PPID    int      `json:"ppid"`
	PGID    int      `json:"pgid"`
	SID     int      `json:"sid"`
	Threads []int    `json:"threads"` // with the main one
	State   string   `json:"state"`   // "running", "stopped", "zombie" or "dead"
	Comm    string   `json:"comm"`
	Cmdline []string `json:"cmdline,omitempty"`
	Memory  int64    `json:"memory"` // bytes of its saved pages
}

// SocketView is a socket of a dumped tree. Queues are those that the image holds.
type SocketView struct {
	Protocol string   `json:"protocol"` // "tcp", "udp", "raw", "unix" or a number
	Type     string   `json:"type"`     // "stream", "dgram", "seqpacket", "raw" or a number
	State    string   `json:"state"`    // as in ss(8)
	Local    string   `json:"local"`
	Remote   string   `json:"remote"`
	Recv     int64    `json:"recv"` // bytes in the receive queue
	Send     int64    `json:"send"` // bytes in the send queue, sent or not
	Holders  []Holder `json:"holders,omitempty"`
}

// Holder is a descriptor that refers to a socket.
type Holder struct {
	PID int `json:"pid"`
	FD  int `json:"fd"`
}

// InspectTree decodes the CRIU images in dir.
func InspectTree(dir string) (*TreeView, error) {
	entries, err := decode[pstree.PstreeEntry](dir, "pstree.img", nil)
	if err != nil {
		return nil, err
	}
	v := new(TreeView)
	holders := make(map[uint32][]Holder)
	for _, e := range entries {
		task, err := inspectTask(dir, e)
		if err != nil {
			return nil, err
		}
		v.Tasks = append(v.Tasks, task)
		if err := addHolders(dir, e.GetPid(), holders); err != nil {
			return nil, err
		}
	}
	if v.Sockets, err = inspectSockets(dir, holders); err != nil {
		return nil, err
	}
	if v.Memory, err = pagesSize(dir); err != nil {
		return nil, err
	}
	return v, nil
}

func pagesSize(dir string) (int64, error) {
	list, err := filepath.Glob(filepath.Join(dir, "pages-*.img"))
	if err != nil {
		return 0, err
	}
	var size int64
	for _, name := range list {
		info, err := os.Stat(name)
		if err != nil {
			return 0, err
		}
		size += info.Size()
	}
	return size, nil
}

func inspectTask(dir string, e *pstree.PstreeEntry) (Task, error) {
	pid := e.GetPid()
	core, err := decodeOne[criu_core.CoreEntry](dir, fmt.Sprintf("core-%d.img", pid))
	if err != nil {
		return Task{}, err
	}
	t := Task{
		PID:   int(pid),
		PPID:  int(e.GetPpid()),
		PGID:  int(e.GetPgid()),
		SID:   int(e.GetSid()),
		Comm:  core.GetTc().GetComm(),
		State: taskState(core.GetTc().GetTaskState()),
	}
	for _, tid := range e.GetThreads() {
		t.Threads = append(t.Threads, int(tid))
	}
	mem, err := openMemory(dir, pid)
	if errors.Is(err, fs.ErrNotExist) { // a zombie has none
		return t, nil
	}
	if err != nil {
		return Task{}, err
	}
	t.Memory = mem.size()
	t.Cmdline, err = mem.cmdline(dir, pid)
	return t, err
}

// taskState names the states that CRIU tells apart (criu/include/pstree.h, images/core.proto).
func taskState(s uint32) string {
	switch s {
	case 1:
		return "running"
	case 2:
		return "dead"
	case 3:
		return "stopped"
	case 6:
		return "zombie"
	}
	return strconv.FormatUint(uint64(s), 10)
}

// memory is the map of a task's saved pages.
type memory struct {
	pages string // the file that holds them
	spans []span
}

// span is a run of pages that follow each other in memory and in the file.
type span struct {
	addr, size uint64
	offset     int64
}

// Flags of a pagemap entry (criu/include/pagemap.h).
const (
	pageInParent = 1 << iota // also said by in_parent
	_                        // lazy
	pagePresent              // in the pages file
)

func openMemory(dir string, pid uint32) (*memory, error) {
	im, err := openImage(dir, fmt.Sprintf("pagemap-%d.img", pid))
	if err != nil {
		return nil, err
	}
	defer im.Close()
	head := new(pagemap.PagemapHead)
	if err := im.into(head); err != nil {
		return nil, im.wrap(noEOF(err))
	}
	m := &memory{pages: filepath.Join(dir, fmt.Sprintf("pages-%d.img", head.GetPagesId()))}
	var offset int64
	for {
		e := new(pagemap.PagemapEntry)
		switch err := im.into(e); {
		case errors.Is(err, io.EOF):
			return m, nil
		case err != nil:
			return nil, im.wrap(err)
		}
		if e.GetInParent() || e.Flags != nil && e.GetFlags()&pagePresent == 0 {
			continue // has no data here
		}
		pages := cmp.Or(e.GetNrPages(), uint64(e.GetCompatNrPages()))
		size := pages * uint64(os.Getpagesize())
		m.spans = append(m.spans, span{addr: e.GetVaddr(), size: size, offset: offset})
		offset += int64(size)
	}
}

func (m *memory) size() int64 {
	var n int64
	for _, s := range m.spans {
		n += int64(s.size)
	}
	return n
}

// maxArgs bounds what is shown of a command line.
const maxArgs = 64 << 10

func (m *memory) cmdline(dir string, pid uint32) ([]string, error) {
	e, err := decodeOne[mm.MmEntry](dir, fmt.Sprintf("mm-%d.img", pid))
	if err != nil {
		return nil, err
	}
	start, end := e.GetMmArgStart(), e.GetMmArgEnd()
	if end <= start {
		return nil, nil
	}
	data, err := m.read(start, min(end-start, maxArgs))
	if err != nil {
		return nil, err
	}
	var args []string
	for arg := range bytes.SplitSeq(bytes.TrimRight(data, "\x00"), []byte{0}) {
		args = append(args, string(arg))
	}
	return args, nil
}

// read returns memory from addr on, up to size bytes or the first page that was not saved.
func (m *memory) read(addr, size uint64) ([]byte, error) {
	f, err := os.Open(m.pages)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var data []byte
	for _, s := range m.spans {
		if size == 0 || addr < s.addr || addr-s.addr >= s.size {
			continue
		}
		b := make([]byte, min(size, s.size-(addr-s.addr)))
		if _, err := f.ReadAt(b, s.offset+int64(addr-s.addr)); err != nil {
			return nil, fmt.Errorf("read memory at %#x: %w", addr, err)
		}
		data = append(data, b...)
		addr += uint64(len(b))
		size -= uint64(len(b))
	}
	return data, nil
}

// addHolders notes which descriptors of a task refer to which file.
func addHolders(dir string, pid uint32, holders map[uint32][]Holder) error {
	ids, err := decodeOne[criu_core.TaskKobjIdsEntry](dir, fmt.Sprintf("ids-%d.img", pid))
	if errors.Is(err, fs.ErrNotExist) { // a zombie has none
		return nil
	}
	if err != nil {
		return err
	}
	fds, err := decodeOptional[fdinfo.FdinfoEntry](dir, fmt.Sprintf("fdinfo-%d.img", ids.GetFilesId()), nil)
	for _, fd := range fds {
		holders[fd.GetId()] = append(holders[fd.GetId()], Holder{PID: int(pid), FD: int(fd.GetFd())})
	}
	return err
}

func inspectSockets(dir string, holders map[uint32][]Holder) ([]SocketView, error) {
	files, err := decode[fdinfo.FileEntry](dir, "files.img", nil)
	if err != nil {
		return nil, err
	}
	packets, err := decodeOptional(dir, "sk-queues.img", func(p *sk_packet.SkPacketEntry) int64 { return int64(p.GetLength()) })
	if err != nil {
		return nil, err
	}
	queued := make(map[uint32]int64)
	for _, p := range packets {
		queued[p.GetIdFor()] += int64(p.GetLength())
	}
	names := make(map[uint32]string) // of unix sockets by inode
	for _, f := range files {
		if u := f.GetUsk(); u != nil {
			names[u.GetIno()] = unixName(u.GetName())
		}
	}
	var all []SocketView
	for _, f := range files {
		var s SocketView
		switch {
		case f.GetIsk() != nil:
			if s, err = inetSocket(dir, f.GetIsk()); err != nil {
				return nil, err
			}
		case f.GetUsk() != nil:
			s = unixSocket(f.GetUsk(), names)
			s.Recv = queued[f.GetId()]
		default:
			continue
		}
		s.Holders = holders[f.GetId()]
		all = append(all, s)
	}
	slices.SortStableFunc(all, func(a, b SocketView) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Local, b.Local), cmp.Compare(a.Remote, b.Remote))
	})
	return all, nil
}

func inetSocket(dir string, e *sk_inet.InetSkEntry) (SocketView, error) {
	s := SocketView{
		Protocol: protocol(e.GetProto()),
		Type:     socketType(e.GetType()),
		State:    socketState(e.GetState()),
		Local:    address(e.GetSrcAddr(), e.GetSrcPort()),
		Remote:   address(e.GetDstAddr(), e.GetDstPort()),
	}
	if e.GetProto() != unix.IPPROTO_TCP {
		return s, nil
	}
	stream, err := decodeOne[tcp_stream.TcpStreamEntry](dir, fmt.Sprintf("tcp-stream-%x.img", e.GetIno()))
	if errors.Is(err, fs.ErrNotExist) { // listening, or closed
		return s, nil
	}
	if err != nil {
		return SocketView{}, err
	}
	s.Recv, s.Send = int64(stream.GetInqLen()), int64(stream.GetOutqLen())
	return s, nil
}

// address renders an address as CRIU stores it: the words of the kernel's, in network byte order.
func address(words []uint32, port uint32) string {
	var b []byte
	for _, w := range words {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	ip, ok := netip.AddrFromSlice(b)
	if !ok {
		return ""
	}
	return netip.AddrPortFrom(ip, uint16(port)).String()
}

func protocol(p uint32) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_UDPLITE:
		return "udplite"
	case unix.IPPROTO_RAW:
		return "raw"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmp6"
	}
	return strconv.FormatUint(uint64(p), 10)
}

func socketType(t uint32) string {
	switch t {
	case unix.SOCK_STREAM:
		return "stream"
	case unix.SOCK_DGRAM:
		return "dgram"
	case unix.SOCK_SEQPACKET:
		return "seqpacket"
	case unix.SOCK_RAW:
		return "raw"
	}
	return strconv.FormatUint(uint64(t), 10)
}

// socketState names a state of include/net/tcp_states.h, which other protocols borrow, in the words of ss(8).
func socketState(state uint32) string {
	states := [...]string{
		1: "ESTAB", 2: "SYN-SENT", 3: "SYN-RECV", 4: "FIN-WAIT-1", 5: "FIN-WAIT-2", 6: "TIME-WAIT",
		7: "UNCONN", 8: "CLOSE-WAIT", 9: "LAST-ACK", 10: "LISTEN", 11: "CLOSING",
	}
	if state < uint32(len(states)) && state > 0 {
		return states[state]
	}
	return strconv.FormatUint(uint64(state), 10)
}

func unixSocket(e *sk_unix.UnixSkEntry, names map[uint32]string) SocketView {
	s := SocketView{
		Protocol: "unix",
		Type:     socketType(e.GetType()),
		State:    socketState(e.GetState()),
		Local:    unixName(e.GetName()),
	}
	if peer := e.GetPeer(); peer != 0 {
		s.Remote = cmp.Or(names[peer], "*")
	}
	return s
}

// unixName renders a path, an abstract name with @ for its first zero byte, or "*" for a socket without a name.
func unixName(name []byte) string {
	switch {
	case len(name) == 0:
		return "*"
	case name[0] == 0:
		return "@" + string(bytes.ReplaceAll(name[1:], []byte{0}, []byte("@")))
	}
	return string(bytes.TrimRight(name, "\x00"))
}
