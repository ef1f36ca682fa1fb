package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Voice hears what leaves a host on its wire from one Ethernet address: when a copy of a service speaks, and on which
// host.
type Voice struct {
	fd   int
	mac  net.HardwareAddr
	gone chan struct{}

	mu    sync.Mutex
	times []time.Time
	err   error
}

// Hear begins to listen at the host's own interface for frames that it sends from an address.
func (h *Host) Hear(mac net.HardwareAddr) (*Voice, error) {
	v := &Voice{mac: mac, gone: make(chan struct{})}
	err := h.doNet(func() (err error) {
		const anyProtocol = 0x0300 // ETH_P_ALL in network order
		v.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		index, err := ifindex(v.fd, "eth0")
		return errors.Join(err,
			unix.SetsockoptInt(v.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
			unix.SetsockoptInt(v.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.SetsockoptTimeval(v.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
			unix.Bind(v.fd, &unix.SockaddrLinklayer{Protocol: anyProtocol, Ifindex: index}))
	})
	if err != nil {
		return nil, fmt.Errorf("hear %s at %s: %w", mac, h.Name, err)
	}
	go v.listen()
	return v, nil
}

func (v *Voice) listen() {
	defer close(v.gone)
	buf, oob := make([]byte, frameLen), make([]byte, 128)
	for {
		n, oobn, _, from, err := unix.Recvmsg(v.fd, buf, oob, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			if v.closed() {
				return
			}
			continue
		}
		if err != nil {
			v.mu.Lock()
			v.err = err
			v.mu.Unlock()
			return
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok || link.Pkttype != unix.PACKET_OUTGOING || n < 12 || !bytes.Equal(buf[6:12], v.mac) {
			continue
		}
		if at, ok := stampOf(oob[:oobn]); ok {
			v.mu.Lock()
			v.times = append(v.times, at)
			v.mu.Unlock()
		}
	}
}

func (v *Voice) closed() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err != nil
}

// stampOf reads the kernel's time of a frame.
func stampOf(oob []byte) (time.Time, bool) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Time{}, false
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
			ts := (*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
			return time.Unix(ts.Sec, ts.Nsec), true
		}
	}
	return time.Time{}, false
}

// Heard returns when frames left, oldest first, and forgets them.
func (v *Voice) Heard() []time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	times := v.times
	v.times = nil
	return times
}

// Close ends the listening.
func (v *Voice) Close() error {
	v.mu.Lock()
	v.err = net.ErrClosed
	v.mu.Unlock()
	<-v.gone
	return unix.Close(v.fd)
}
