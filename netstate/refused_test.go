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
