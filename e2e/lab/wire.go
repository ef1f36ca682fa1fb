package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Wire watches a host's interface for the segments that end connections. The kernel filters and keeps
// them: bulk traffic can't hide one.
type Wire struct {
	fd       int
	closings []Closing
}

// Closing is a TCP segment with RST or FIN.
type Closing struct {
	Src, Dst netip.AddrPort
	RST, FIN bool
}

func (c Closing) String() string {
	flag := "FIN"
	if c.RST {
		flag = "RST"
	}
	return fmt.Sprintf("%s %s -> %s", flag, c.Src, c.Dst)
}

const (
	tcpFIN = 1
	tcpRST = 4
)

// closingsFilter passes IPv4 and IPv6 frames whose TCP header, not behind extension headers, has FIN or RST.
var closingsFilter = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 12},                       // 0: EtherType
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.ETH_P_IP, Jf: 5},    // 1: else to 7
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 14 + 9},                   // 2: protocol
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_TCP, Jf: 9}, // 3: else to 13
	{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 14},                      // 4: header length
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: 14 + 13},                  // 5: flags
	{Code: unix.BPF_JMP | unix.BPF_JA, K: 4},                                     // 6: to 11
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.ETH_P_IPV6, Jf: 5},  // 7: else to 13
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 14 + 6},                   // 8: next header
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_TCP, Jf: 3}, // 9: else to 13
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 14 + 40 + 13},             // 10: flags
	{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: tcpFIN | tcpRST, Jf: 1}, // 11: else to 13
	{Code: unix.BPF_RET | unix.BPF_K, K: frameLen},                               // 12
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},                                      // 13
}

const frameLen = 256 // enough for the headers

// Watch begins to watch an interface of the host.
func (h *Host) Watch(ifname string) (*Wire, error) {
	w := &Wire{}
	err := h.doNet(func() (err error) {
		w.fd, err = openWire(ifname)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("watch %s of %s: %w", ifname, h.Name, err)
	}
	return w, nil
}

func openWire(ifname string) (int, error) {
	const anyProtocol = 0x0300 // ETH_P_ALL in network order
	// Bound to no protocol until the filter is in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	index, err := ifindex(fd, ifname)
	prog := unix.SockFprog{Len: uint16(len(closingsFilter)), Filter: &closingsFilter[0]}
	err = errors.Join(err,
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20),
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog))
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: anyProtocol, Ifindex: index})
	}
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

func ifindex(fd int, name string) (int, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req)
	return int(req.Uint32()), err
}

// Closings returns everything that was seen since the watch began. If that was too much to keep, it returns an error with what
// was kept.
func (w *Wire) Closings() ([]Closing, error) {
	for buf := make([]byte, frameLen); ; {
		n, _, err := unix.Recvfrom(w.fd, buf, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("watch: %w", err)
		}
		if c, ok := parseClosing(buf[:n]); ok {
			w.closings = append(w.closings, c)
		}
	}
	stats, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err == nil && stats.Drops > 0 {
		err = fmt.Errorf("the kernel dropped %d segments", stats.Drops)
	}
	if err != nil {
		err = fmt.Errorf("watch: %w", err)
	}
	return append([]Closing(nil), w.closings...), err
}

// parseClosing decodes a frame that has passed the filter.
func parseClosing(b []byte) (Closing, bool) {
	const ether, ipv4, ipv6, tcpFlags = 14, 20, 40, 13
	if len(b) < ether+ipv4 {
		return Closing{}, false
	}
	var src, dst netip.Addr
	ip, tcp := b[ether:], []byte(nil)
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_IP:
		src, dst = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
		tcp = ip[min(len(ip), 4*int(ip[0]&15)):]
	case unix.ETH_P_IPV6:
		if len(ip) < ipv6 {
			return Closing{}, false
		}
		src, dst = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
		tcp = ip[ipv6:]
	}
	if len(tcp) <= tcpFlags {
		return Closing{}, false
	}
	return Closing{
		Src: netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp)),
		Dst: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:])),
		RST: tcp[tcpFlags]&tcpRST != 0,
		FIN: tcp[tcpFlags]&tcpFIN != 0,
	}, true
}

// Close ends the watch.
func (w *Wire) Close() error { return unix.Close(w.fd) }
