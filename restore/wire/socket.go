package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// Address is an address as a link carries it.
type Address struct {
	Device string
	Addr   netip.Addr
}

// Announcer sends announcements from inside one namespace. Open it ahead of time: sending is then one
// system call an address.
type Announcer struct {
	fd     int
	frames []frame
}

type frame struct {
	ifindex int
	data    []byte
}

// NewAnnouncer prepares the announcements of the addresses in the namespace. Addresses of devices without
// Ethernet addresses, of the loopback device and of devices that don't resolve addresses are left out.
func NewAnnouncer(n *ns.NS, addrs []Address) (*Announcer, error) {
	a := &Announcer{fd: -1}
	err := n.Do(func() error {
		devices := map[string]*net.Interface{}
		for _, addr := range addrs {
			dev, ok := devices[addr.Device]
			if !ok {
				dev, _ = net.InterfaceByName(addr.Device)
				devices[addr.Device] = dev
			}
			if dev == nil || len(dev.HardwareAddr) != 6 || dev.Flags&net.FlagLoopback != 0 || addr.Addr.IsMulticast() {
				continue
			}
			a.frames = append(a.frames, frame{dev.Index, announcement(addr.Addr, dev.HardwareAddr)})
		}
		var err error
		a.fd, err = packetSocket()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("prepare announcement: %w", err)
	}
	return a, nil
}

// Send announces every address once. A device that is down or gone does not keep the others from being heard, nor one that
// the kernel has not noticed to be up, which drops the frame: more of them follow.
func (a *Announcer) Send() error {
	var errs []error
	for _, f := range a.frames {
		err := unix.Sendto(a.fd, f.data, 0, &unix.SockaddrLinklayer{Ifindex: f.ifindex})
		if err != nil && !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.ENOBUFS) {
			errs = append(errs, fmt.Errorf("announce on interface %d: %w", f.ifindex, err))
		}
	}
	return errors.Join(errs...)
}

// Rounds of an announcement: QEMU's defaults for the time between them. A single frame may be lost, or
// come before a switch port forwards.
const (
	announceInitial = 50 * time.Millisecond
	announceStep    = 100 * time.Millisecond
	announceMax     = 550 * time.Millisecond
	announceRounds  = 5
)

// Repeat sends the rounds that follow the first one. It returns early, without an error, when the context ends.
func (a *Announcer) Repeat(ctx context.Context) error {
	wait := announceInitial
	for range announceRounds - 1 {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		if err := a.Send(); err != nil {
			return err
		}
		wait = min(wait+announceStep, announceMax)
	}
	return nil
}

// Close closes the socket.
func (a *Announcer) Close() error { return unix.Close(a.fd) }

// Holder is somebody who answers for an address.
type Holder struct {
	Address
	MAC net.HardwareAddr
}

const (
	probeTries = 3
	probeWait  = 70 * time.Millisecond // after each try
)

// Probe asks on devices of the caller's namespace who has the addresses, and returns those who answer.
// Devices that are missing or have no Ethernet address are passed over.
func Probe(ctx context.Context, addrs []Address) ([]Holder, error) {
	byDevice := map[string][]netip.Addr{}
	for _, a := range addrs {
		byDevice[a.Device] = append(byDevice[a.Device], a.Addr)
	}
	type result struct {
		holders []Holder
		err     error
	}
	results := make(chan result, len(byDevice))
	for device, list := range byDevice {
		go func() {
			h, err := probeDevice(ctx, device, list)
			results <- result{h, err}
		}()
	}
	var all []Holder
	var errs []error
	for range byDevice {
		r := <-results
		all = append(all, r.holders...)
		errs = append(errs, r.err)
	}
	return all, errors.Join(errs...)
}

func probeDevice(ctx context.Context, device string, addrs []netip.Addr) ([]Holder, error) {
	dev, err := net.InterfaceByName(device)
	if err != nil || len(dev.HardwareAddr) != 6 || dev.Flags&net.FlagUp == 0 {
		return nil, nil
	}
	fd, err := packetSocket()
	if err != nil {
		return nil, fmt.Errorf("probe on %s: %w", device, err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: dev.Index}); err != nil {
		return nil, fmt.Errorf("probe on %s: %w", device, err)
	}
	found := map[netip.Addr]net.HardwareAddr{}
	for range probeTries {
		for _, addr := range addrs {
			err := unix.Sendto(fd, probe(addr, dev.HardwareAddr), 0, &unix.SockaddrLinklayer{Ifindex: dev.Index})
			if err != nil && !errors.Is(err, unix.ENETDOWN) {
				return nil, fmt.Errorf("probe for %s on %s: %w", addr, device, err)
			}
		}
		if err := listen(ctx, fd, dev.HardwareAddr, addrs, found); err != nil {
			return nil, fmt.Errorf("probe on %s: %w", device, err)
		}
		if len(found) == len(addrs) {
			break
		}
	}
	var holders []Holder
	for _, addr := range addrs {
		if mac, ok := found[addr]; ok {
			holders = append(holders, Holder{Address{device, addr}, mac})
		}
	}
	return holders, nil
}

// listen reads frames for a while and notes who claims the addresses.
func listen(ctx context.Context, fd int, own net.HardwareAddr, addrs []netip.Addr, found map[netip.Addr]net.HardwareAddr) error {
	wanted := map[netip.Addr]bool{}
	for _, a := range addrs {
		wanted[a] = true
	}
	buf := make([]byte, 2048)
	for end := time.Now().Add(probeWait); len(found) < len(addrs); {
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if errors.Is(err, unix.EINTR) || ready == 0 {
			continue
		}
		if err != nil {
			return err
		}
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return err
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		addr, mac, ok := claim(buf[:n])
		if ok && wanted[addr] && mac.String() != own.String() {
			found[addr] = append(net.HardwareAddr(nil), mac...)
		}
	}
	return nil
}

// packetSocket opens an AF_PACKET socket that receives nothing until it is bound to a protocol.
func packetSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open packet socket: %w", err)
	}
	return fd, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
