package hold

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

var (
	ours  = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	eth0  = Uplink{Index: 2, MAC: ours, MTU: 1500, Peer: "veth-svc"}
	ether = append(append([]byte{}, ours...), 2, 0, 0, 0, 0, 1, 0x08, 0x00)
)

// segment is a TCP segment over IPv4 or IPv6, whose checksum is complete or that of the pseudo-header.
func segment(version, payload int, flags byte, complete bool) []byte {
	tcp := make([]byte, tcpLen+12+payload)
	binary.BigEndian.PutUint32(tcp[tcpSeq:], 0xffffff00) // wraps
	tcp[tcpOff], tcp[tcpFlags] = 8<<4, flags
	for i := range payload {
		tcp[tcpLen+12+i] = byte(i)
	}
	var ip []byte
	if version == 4 {
		ip = make([]byte, ipv4Len, ipv4Len+len(tcp))
		ip[0], ip[ipv4Proto], ip[ipv4ID] = 0x45, unix.IPPROTO_TCP, 7
		copy(ip[ipv4Src:], []byte{192, 0, 2, 1, 192, 0, 2, 2})
	} else {
		ip = make([]byte, ipv6Len, ipv6Len+len(tcp))
		ip[0], ip[ipv6Next], ip[ipv6Src], ip[ipv6Src+16] = 0x60, unix.IPPROTO_TCP, 0x20, 0x20
	}
	p := packet{data: append(ip, tcp...), header: len(ip), protocol: unix.IPPROTO_TCP, whole: true}
	p.setLength(0)
	if complete {
		p.setChecksum(tcpCheck, p.pseudo(len(tcp)))
	} else {
		binary.BigEndian.PutUint16(p.transport()[tcpCheck:], fold(p.pseudo(len(tcp))))
	}
	return p.data
}

func header(version int) []byte {
	h := bytes.Clone(ether)
	if version == 6 {
		binary.BigEndian.PutUint16(h[etherTyp:], unix.ETH_P_IPV6)
	}
	return h
}

// right demands that a frame is one that the wire could have carried.
func right(t *testing.T, f Frame) packet {
	t.Helper()
	if !eth0.fits(f) {
		t.Fatalf("a frame of %d bytes does not fit", len(f.Data))
	}
	p, ok := parsePacket(binary.BigEndian.Uint16(f.Data[etherTyp:]), f.Data[etherLen:])
	if !ok {
		t.Fatal("the frame is malformed")
	}
	if p.data[0]>>4 == 4 && fold(sum(p.data[:p.header], 0)) != 0xffff {
		t.Error("the header's checksum is wrong")
	}
	if at, _ := p.checksum(); at >= 0 && fold(sum(p.transport(), p.pseudo(len(p.transport())))) != 0xffff {
		t.Error("the checksum is wrong")
	}
	return p
}

// Segments that were joined are those that came, and their checksums are right.
func TestSplit(t *testing.T) {
	for _, version := range []int{4, 6} {
		for _, complete := range []bool{true, false} {
			frames := eth0.frames(header(version), segment(version, 4000, tcpFIN|tcpPSH|tcpCWR|0x10, complete))
			if len(frames) != 3 {
				t.Fatalf("IPv%d: %d frames", version, len(frames))
			}
			var got []byte
			for i, f := range frames {
				p := right(t, f)
				b := p.transport()
				if seq := binary.BigEndian.Uint32(b[tcpSeq:]); seq-0xffffff00 != uint32(len(got)) {
					t.Errorf("IPv%d: segment %d begins at %d", version, i, seq)
				}
				want := byte(0x10)
				if i == 0 {
					want |= tcpCWR
				}
				if i == 2 {
					want |= tcpFIN | tcpPSH
				}
				if b[tcpFlags] != want {
					t.Errorf("IPv%d: segment %d has the flags %#x, want %#x", version, i, b[tcpFlags], want)
				}
				if version == 4 && binary.BigEndian.Uint16(p.data[ipv4ID:]) != 0x700+uint16(i) {
					t.Errorf("segment %d has the ID %#x", i, p.data[ipv4ID:ipv4ID+2])
				}
				got = append(got, b[tcpLen+12:]...)
			}
			if whole := segment(version, 4000, 0, true); !bytes.Equal(got, whole[len(whole)-4000:]) {
				t.Errorf("IPv%d: the segments carry something else", version)
			}
		}
	}
}

// What is damaged, cut off, too long to have come that way, or not for us, is not given back.
func TestUnfit(t *testing.T) {
	good := segment(4, 100, 0x10, true)
	change := func(f func(b []byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		return b
	}
	datagram := func(length int, check uint16) []byte {
		b := append(bytes.Clone(good[:ipv4Len]), make([]byte, length)...)
		p := packet{data: b, header: ipv4Len, protocol: unix.IPPROTO_UDP, whole: true}
		p.data[ipv4Proto] = unix.IPPROTO_UDP
		p.setLength(0)
		binary.BigEndian.PutUint16(p.transport()[4:], uint16(length))
		binary.BigEndian.PutUint16(p.transport()[udpCheck:], check)
		return p.data
	}
	other := bytes.Clone(ether)
	other[5] = 9
	many := bytes.Clone(ether)
	copy(many, []byte{1, 0, 0x5e, 0, 0, 1})
	for name, c := range map[string]struct {
		hardware, packet []byte
		frames           int
	}{
		"good":                            {ether, good, 1},
		"to many":                         {many, good, 1},
		"to another":                      {other, good, 0},
		"no hardware header":              {nil, good, 0},
		"damaged":                         {ether, change(func(b []byte) { b[len(b)-1]++ }), 0},
		"cut off":                         {ether, good[:len(good)-1], 0},
		"empty":                           {ether, nil, 0},
		"long header":                     {ether, change(func(b []byte) { b[0] = 0x4f })[:ipv4Len], 0},
		"other version":                   {header(6), good, 0},
		"a fragment":                      {ether, change(func(b []byte) { b[ipv4Frag] |= 0x20; b[len(b)-1]++ }), 1},
		"datagram without checksum":       {ether, datagram(100, 0), 1},
		"datagrams that were never split": {ether, datagram(3000, 0), 0},
	} {
		if got := eth0.frames(c.hardware, c.packet); len(got) != c.frames {
			t.Errorf("%s: %d frames, want %d", name, len(got), c.frames)
		}
	}
}

func FuzzLogged(f *testing.F) {
	for _, packet := range [][]byte{segment(4, 4000, 0x10, false), segment(6, 10, 0x10, true)} {
		b := []byte{0, 0, 0, 0}
		b = rawnl.AppendAttr(b, attrPrefix, []byte("nsmigrate_lock\x00"))
		b = rawnl.AppendAttr(b, attrSeq, be32(1))
		b = rawnl.AppendAttr(b, attrIndev, be32(2))
		b = rawnl.AppendAttr(b, attrHWHeader, header(int(packet[0]>>4)))
		f.Add(rawnl.AppendAttr(b, attrPayload, packet))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, ok := parseLogged(data)
		if !ok {
			return
		}
		for _, f := range (&Holder{uplinks: []Uplink{eth0}}).frames(p) {
			if p, ok := parsePacket(binary.BigEndian.Uint16(f.Data[etherTyp:]), f.Data[etherLen:]); !ok || !eth0.fits(f) {
				t.Errorf("a frame that does not fit: %x", p.data)
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add(Encode([]Frame{{2, append(bytes.Clone(ether), segment(4, 10, 0, true)...)}, {3, nil}}))
	f.Add([]byte{0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		frames, err := Decode(bytes.NewReader(data))
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Error(err)
			}
			return
		}
		if !bytes.Equal(Encode(frames), data) {
			t.Error("it means something else when it is encoded again")
		}
		for _, f := range frames {
			if eth0.fits(f) && (len(f.Data) > etherLen+eth0.MTU || f.Index != eth0.Index) {
				t.Errorf("%+v fits", f)
			}
		}
	})
}
