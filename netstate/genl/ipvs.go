package genl

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// linux/ip_vs.h.
const (
	ipvsNewService = 1
	ipvsGetService = 4
	ipvsNewDest    = 5
	ipvsGetDest    = 8
	ipvsNewDaemon  = 9
	ipvsGetDaemon  = 11
	ipvsSetConfig  = 12
	ipvsGetConfig  = 13
	ipvsConnection = 0xff // ours: that there are connections; never sent

	ipvsAttrService = 1
	ipvsAttrDest    = 2
	ipvsAttrDaemon  = 3
	ipvsAttrTCP     = 4
	ipvsAttrFIN     = 5
	ipvsAttrUDP     = 6

	ipvsServiceAF       = 1
	ipvsServiceProtocol = 2
	ipvsServiceAddr     = 3
	ipvsServicePort     = 4
	ipvsServiceFwmark   = 5
	ipvsServiceSched    = 6
	ipvsServiceFlags    = 7
	ipvsServiceStats    = 10
	ipvsServiceStats64  = 12

	ipvsDestAddr    = 1
	ipvsDestPort    = 2
	ipvsDestActive  = 7
	ipvsDestInact   = 8
	ipvsDestPersist = 9
	ipvsDestStats   = 10
	ipvsDestFamily  = 11
	ipvsDestStats64 = 12

	ipvsHashed = 2 // IP_VS_SVC_F_HASHED: the kernel sets it itself
)

// ipvs carries the virtual services of IPVS with their destinations, the timeouts and the synchronisation daemons.
// The connections that go through it can't be carried: there is no request to make one.
func ipvs() family {
	service := rawnl.Nest{ipvsAttrService: rawnl.Flat()}
	return family{
		number: familyIPVS, name: "IPVS", word: "ipvs", capture: captureIPVS, describe: describeIPVS,
		nests: map[byte]rawnl.Nest{
			ipvsNewService: service, ipvsNewDest: {ipvsAttrService: rawnl.Flat(), ipvsAttrDest: rawnl.Flat()},
			ipvsNewDaemon: {ipvsAttrDaemon: rawnl.Flat()}, ipvsSetConfig: rawnl.Flat(), ipvsConnection: rawnl.Flat(),
		},
		loss: func(m rawnl.Message) string {
			if commandOf(m) == ipvsConnection {
				return "the kernel has no request to make them"
			}
			return ""
		},
	}
}

func captureIPVS(ctx context.Context, c conn) ([]rawnl.Message, error) {
	var msgs []rawnl.Message
	config, err := c.request(ctx, ipvsGetConfig)
	if err != nil {
		return nil, fmt.Errorf("get timeouts: %w", err)
	}
	fresh := append(append(attr(ipvsAttrTCP, u32(15*60)), attr(ipvsAttrFIN, u32(2*60))...), attr(ipvsAttrUDP, u32(5*60))...)
	for _, attrs := range config {
		if attrs = only(attrs, ipvsAttrTCP, ipvsAttrFIN, ipvsAttrUDP); !bytes.Equal(attrs, fresh) {
			msgs = append(msgs, c.message(ipvsSetConfig, attrs))
		}
	}
	services, err := c.dump(ctx, ipvsGetService)
	if err != nil {
		return nil, fmt.Errorf("dump services: %w", err)
	}
	slices.SortFunc(services, bytes.Compare) // the kernel shows them in the order of a hash table
	for _, attrs := range services {
		service := rawnl.Get(attrs, ipvsAttrService)
		made := rawnl.Rewrite(without(service, ipvsServiceStats, ipvsServiceStats64), func(a rawnl.Attr) (rawnl.Attr, bool) {
			if a.Kind() == ipvsServiceFlags && len(a.Data) == 8 { // flags and mask
				flags := binary.NativeEndian.Uint32(a.Data) &^ ipvsHashed
				a.Data = append(u32(flags), a.Data[4:]...)
			}
			return a, true
		})
		msgs = append(msgs, c.message(ipvsNewService, nest(ipvsAttrService, made)))
		id := nest(ipvsAttrService, only(service, ipvsServiceAF, ipvsServiceProtocol, ipvsServiceAddr, ipvsServicePort, ipvsServiceFwmark))
		dests, err := c.dump(ctx, ipvsGetDest, id)
		if err != nil {
			return nil, fmt.Errorf("dump destinations: %w", err)
		}
		for _, attrs := range slices.Backward(dests) { // the newest is shown first
			dest := without(rawnl.Get(attrs, ipvsAttrDest), ipvsDestActive, ipvsDestInact, ipvsDestPersist, ipvsDestStats, ipvsDestStats64)
			msgs = append(msgs, c.message(ipvsNewDest, id, nest(ipvsAttrDest, dest)))
		}
	}
	daemons, err := c.dump(ctx, ipvsGetDaemon)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("dump daemons: %w", err)
	}
	for _, attrs := range daemons {
		msgs = append(msgs, c.message(ipvsNewDaemon, nest(ipvsAttrDaemon, rawnl.Get(attrs, ipvsAttrDaemon))))
	}
	connections, err := ipvsConnections(c)
	if connections > 0 {
		msgs = append(msgs, c.message(ipvsConnection, attr(1, u32(connections))))
	}
	return msgs, err
}

// ipvsConnections counts the connections of a namespace.
func ipvsConnections(c conn) (count uint32, err error) {
	err = c.n.Do(func() error {
		table, err := os.ReadFile("/proc/thread-self/net/ip_vs_conn")
		if err != nil {
			return fmt.Errorf("count connections: %w", err)
		}
		if lines := strings.Count(string(table), "\n"); lines > 1 { // the first is a heading
			count = uint32(lines - 1)
		}
		return nil
	})
	return count, err
}

func describeIPVS(m rawnl.Message, _ func(int32) string) string {
	service, dest := rawnl.Get(attrsOf(m), ipvsAttrService), rawnl.Get(attrsOf(m), ipvsAttrDest)
	switch commandOf(m) {
	case ipvsConnection:
		return fmt.Sprintf("%d connections", rawnl.Uint32(rawnl.Get(attrsOf(m), 1)))
	case ipvsSetConfig:
		return fmt.Sprintf("timeouts tcp %d tcpfin %d udp %d", rawnl.Uint32(rawnl.Get(attrsOf(m), ipvsAttrTCP)),
			rawnl.Uint32(rawnl.Get(attrsOf(m), ipvsAttrFIN)), rawnl.Uint32(rawnl.Get(attrsOf(m), ipvsAttrUDP)))
	case ipvsNewService:
		return fmt.Sprintf("service %s scheduler %s %s", ipvsName(service), rawnl.CString(rawnl.Get(service, ipvsServiceSched)),
			describeRest(service, ipvsServiceSched, ipvsServiceAF, ipvsServiceProtocol, ipvsServiceAddr, ipvsServicePort, ipvsServiceFwmark))
	case ipvsNewDest:
		family := binary16(rawnl.Get(service, ipvsServiceAF))
		if b := rawnl.Get(dest, ipvsDestFamily); b != nil {
			family = binary16(b)
		}
		return fmt.Sprintf("service %s to %s %s", ipvsName(service), ipvsAddr(family, rawnl.Get(dest, ipvsDestAddr), rawnl.Get(dest, ipvsDestPort)),
			describeRest(dest, ipvsDestAddr, ipvsDestPort, ipvsDestFamily))
	}
	return fmt.Sprintf("daemon %x", rawnl.Get(attrsOf(m), ipvsAttrDaemon))
}

func ipvsName(service []byte) string {
	if mark := rawnl.Get(service, ipvsServiceFwmark); mark != nil {
		return fmt.Sprintf("fwmark %d", rawnl.Uint32(mark))
	}
	return fmt.Sprintf("protocol %d %s", binary16(rawnl.Get(service, ipvsServiceProtocol)),
		ipvsAddr(binary16(rawnl.Get(service, ipvsServiceAF)), rawnl.Get(service, ipvsServiceAddr), rawnl.Get(service, ipvsServicePort)))
}

// ipvsAddr renders an address, which is shown in 16 bytes for both families, with its port.
func ipvsAddr(family uint16, addr, port []byte) string {
	n := 4
	if family == unix.AF_INET6 {
		n = 16
	}
	a, _ := netip.AddrFromSlice(addr[:min(n, len(addr))])
	if len(port) != 2 {
		return a.String()
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port)).String()
}

func binary16(b []byte) uint16 {
	if len(b) != 2 {
		return 0
	}
	return binary.NativeEndian.Uint16(b)
}

// describeRest renders attributes by number, less those that are shown otherwise.
func describeRest(b []byte, shown ...uint16) string {
	var parts []string
	for a := range rawnl.Each(without(b, shown...)) {
		parts = append(parts, fmt.Sprintf("attr%d %x", a.Kind(), a.Data))
	}
	return strings.Join(parts, " ")
}
