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
