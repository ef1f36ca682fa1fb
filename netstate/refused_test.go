package netstate_test

import (
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// handmade is a dumped link of a kind; "" is hardware.
func handmade(kind string, data ...rawnl.Attr) rawnl.Message {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint16(b[2:], unix.ARPHRD_ETHER)
	binary.NativeEndian.PutUint32(b[4:], 7)
	attrs := []rawnl.Attr{{Type: unix.IFLA_IFNAME, Data: []byte("x0\x00")}, {Type: unix.IFLA_MTU, Data: []byte{220, 5, 0, 0}}}
	if kind != "" {
		info := []rawnl.Attr{{Type: unix.IFLA_INFO_KIND, Data: []byte(kind + "\x00")}, {Type: unix.IFLA_INFO_DATA, Data: rawnl.EncodeAttrs(data)}}
		attrs = append(attrs, rawnl.Attr{Type: unix.IFLA_LINKINFO, Data: rawnl.EncodeAttrs(info)})
	}
	return rawnl.Message{Type: unix.RTM_NEWLINK, Data: rawnl.AppendAttrs(b, attrs)}
}

// TestRefusedKinds looks at links that no test can make on every kernel.
func TestRefusedKinds(t *testing.T) {
	for _, c := range []struct{ name, kind, want string }{
		{"hardware", "", "link x0: it is a hardware device"},
		{"openvswitch", "openvswitch", "link x0 (openvswitch): it belongs to a switch of Open vSwitch"},
		{"ppp", "ppp", "link x0 (ppp): it lives by the open files of pppd"},
		{"ovpn", "ovpn", "link x0 (ovpn): its keys can't be read"},
		{"amt", "amt", "link x0 (amt): it is a daemon's connection"},
		{"another", "wwan", `link x0 (wwan): links of kind "wwan" are not carried`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if loss, lost := netstate.CheckLink(handmade(c.kind)); !lost || !strings.HasPrefix(loss.String(), c.want) {
				t.Errorf("%v %q", lost, loss)
			}
		})
	}
}

// TestUnbuiltKinds plans links of kinds that the kernels of the other tests don't have. The dumps are made by hand.
func TestUnbuiltKinds(t *testing.T) {
	for _, c := range []struct {
		name string
		data []rawnl.Attr
		want string
	}{
		// bareudp_fill_info of drivers/net/bareudp.c: port and protocol in network order, lowest source port, and a flag.
		{
			"bareudp",
			[]rawnl.Attr{{Type: 1, Data: []byte{0x19, 0xeb}}, {Type: 2, Data: []byte{0x88, 0x47}}, {Type: 3, Data: []byte{0, 0xc0}}, {Type: 4}},
			"data { attr1 19eb attr2 8847 attr3 00c0 attr4 }",
		},
		{"pfcp", nil, "linkinfo { kind pfcp }"}, // drivers/net/pfcp.c has no attributes
	} {
		t.Run(c.name, func(t *testing.T) {
			m := handmade(c.name, c.data...)
			if loss, lost := netstate.CheckLink(m); lost {
				t.Errorf("lost: %s", loss)
			}
			s := &netstate.State{Messages: map[netstate.Kind][]rawnl.Message{netstate.KindLink: {m}}}
			plan, err := netstate.Plan(s, netstate.Site{})
			if err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			for _, batch := range plan {
				text.WriteString(batch.Text(s))
			}
			if want := "add link x0 type " + c.name; !strings.Contains(text.String(), want) || !strings.Contains(text.String(), c.want) {
				t.Errorf("no %q and %q in\n%s", want, c.want, text.String())
			}
		})
	}
}

// TestSift names what the tools of a test can't make everywhere.
func TestSift(t *testing.T) {
	nest := func(kind uint16, data []byte) rawnl.Attr {
		return rawnl.Attr{Type: kind | unix.NLA_F_NESTED, Data: data}
	}
	of := func(typ uint16, header int, family byte, index uint32, attrs ...rawnl.Attr) rawnl.Message {
		b := make([]byte, header)
		b[0] = family
		binary.NativeEndian.PutUint32(b[4:], index)
		return rawnl.Message{Type: typ, Data: rawnl.AppendAttrs(b, attrs)}
	}
	port := func(protocol uint16) rawnl.Message {
		spec := rawnl.AppendAttr(nil, protocol|unix.NLA_F_NESTED, rawnl.AppendAttr(nil, 1, []byte{1, 0, 0, 0}))
		return of(unix.RTM_NEWLINK, unix.SizeofIfInfomsg, unix.AF_BRIDGE, 7, rawnl.Attr{Type: unix.IFLA_IFNAME, Data: []byte("p1\x00")}, nest(unix.IFLA_AF_SPEC, spec))
	}
	entries := nest(1, rawnl.AppendAttr(nil, 1|unix.NLA_F_NESTED, rawnl.AppendAttr(nil, 1, make([]byte, 28))))
	for _, c := range []struct {
		name string
		kind netstate.Kind
		msgs []rawnl.Message
		left int
		want []string
	}{
		{"bridge protocols", netstate.KindBridgeVLAN, []rawnl.Message{port(4), port(5), port(6), port(2)}, 4, []string{
			"mrp dev p1: media redundancy", "cfm dev p1: connectivity fault", "mst dev p1: multiple spanning trees",
		}},
		{"multicast entries of a vxlan", netstate.KindMDB, []rawnl.Message{
			of(unix.RTM_NEWMDB, 8, 0, 7, entries), of(unix.RTM_NEWMDB, 8, 0, 8, entries), of(unix.RTM_NEWMDB, 8, 0, 8),
		}, 2, []string{"mdb dev vxlan0: multicast forwarding entries of a vxlan"}},
		{"addresses of other families", netstate.KindAddress, []rawnl.Message{
			of(unix.RTM_NEWADDR, unix.SizeofIfAddrmsg, unix.AF_PHONET, 7), of(unix.RTM_NEWADDR, unix.SizeofIfAddrmsg, unix.AF_INET, 7),
		}, 1, []string{"address of family 35 dev bridge0: the family is not carried"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			left, losses := netstate.Sift(c.kind, c.msgs, map[int32]string{7: "bridge", 8: "vxlan"})
			var got []string
			for _, l := range losses {
				got = append(got, l.String())
			}
			checkLines(t, got, c.want...)
			if left != c.left {
				t.Errorf("%d are left", left)
			}
		})
	}
}

// TestHiddenQdiscs leaves queueing disciplines out of a dump, as the kernel does at a taprio that is too large for one.
func TestHiddenQdiscs(t *testing.T) {
	link := func(index uint32, name, qdisc string) rawnl.Message {
		b := make([]byte, unix.SizeofIfInfomsg)
		binary.NativeEndian.PutUint32(b[4:], index)
		b = rawnl.AppendAttr(b, unix.IFLA_IFNAME, append([]byte(name), 0))
		return rawnl.Message{Type: unix.RTM_NEWLINK, Data: rawnl.AppendAttr(b, unix.IFLA_QDISC, append([]byte(qdisc), 0))}
	}
	qdisc := func(index, parent uint32) rawnl.Message {
		b := make([]byte, 20)
		binary.NativeEndian.PutUint32(b[4:], index)
		binary.NativeEndian.PutUint32(b[12:], parent)
		return rawnl.Message{Type: unix.RTM_NEWQDISC, Data: b}
	}
	const root, ingress = 0xffffffff, 0xfffffff1
	links := []rawnl.Message{link(1, "lo", "noqueue"), link(2, "a0", "fq"), link(3, "b0", "taprio"), link(4, "c0", "htb"), link(5, "d0", "noop")}
	for _, c := range []struct {
		name   string
		qdiscs []rawnl.Message
		want   []string
	}{
		{"all are shown", []rawnl.Message{qdisc(2, root), qdisc(3, root), qdisc(4, root)}, nil},
		{"a large taprio", []rawnl.Message{qdisc(2, root), qdisc(2, ingress)}, []string{
			"qdisc taprio dev b0 root: its schedule is larger", "qdisc htb dev c0 root: the kernel shows nothing behind",
		}},
		{"only the last is shown in part", []rawnl.Message{qdisc(2, root), qdisc(3, root), qdisc(4, ingress)}, []string{"qdisc htb dev c0 root: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			losses, err := netstate.HiddenQdiscs(links, c.qdiscs)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, l := range losses {
				got = append(got, l.String())
			}
			checkLines(t, got, c.want...)
		})
	}
}

// TestShownQdiscs: of a namespace whose queueing disciplines are all shown, none is missed.
func TestShownQdiscs(t *testing.T) {
	needRoot(t)
	host, source := arrange(t, container+`
		ip link add d0 type ifb; ip link add e0 numtxqueues 4 type veth peer name e1; ip link add br0 type bridge
		for d in d0 e0 e1; do ip link set $d up; done; ip link set e1 master br0
		tc qdisc add dev d0 root handle 1: htb; tc qdisc add dev d0 clsact; tc qdisc replace dev e0 root tbf rate 1mbit burst 10k limit 30k
		tc qdisc add dev br0 root pfifo limit 10`)
	s := capture(t, source, host)
	nl, err := rawnl.Dial(source, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	qdiscs, err := nl.Dump(t.Context(), rawnl.Message{Type: unix.RTM_GETQDISC, Data: make([]byte, 20)})
	if err != nil {
		t.Fatal(err)
	}
	losses, err := netstate.HiddenQdiscs(s.Messages[netstate.KindLink], qdiscs)
	if err != nil || len(losses) > 0 {
		t.Errorf("missed %v, %v", losses, err)
	}
	if losses, err = netstate.HiddenQdiscs(s.Messages[netstate.KindLink], nil); err != nil || len(losses) < 3 {
		t.Errorf("without a dump only %v are missed, %v", losses, err)
	}
}
