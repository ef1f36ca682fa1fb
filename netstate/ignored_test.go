package netstate_test

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// TestIgnored builds a State of a kernel that knows more attributes than this one, which passes over them.
func TestIgnored(t *testing.T) {
	needRoot(t)
	host, source := arrange(t, container+`
		ip link add vx0 type vxlan id 7 dstport 4789 remote 10.0.0.9; ip link add br7 type bridge; ip link set vx0 master br7; ip link set vx0 up; ip link set br7 up
		tc qdisc add dev vx0 root handle 1: htb default 1; ip rule add from 10.7.0.0/16 lookup 7 pref 77`)
	settleDown(t, source, host)
	add := func(s *netstate.State, k netstate.Kind, i, header int, attrs []byte) {
		m := &s.Messages[k][i]
		m.Data = append(append(slices.Clone(m.Data[:header]), m.Data[header:]...), attrs...)
	}
	number := rawnl.AppendAttr(nil, 999, []byte{1, 2, 3, 4})
	for _, c := range []struct {
		name   string
		kernel string
		alter  func(*netstate.State)
		want   []string
	}{
		{"of this kernel", "", func(s *netstate.State) { add(s, netstate.KindRoute, 0, unix.SizeofRtMsg, number) }, nil},
		{"with nothing new", "7.7.7", func(*netstate.State) {}, nil},
		{"with what means nothing", "7.7.7", func(s *netstate.State) {
			add(s, netstate.KindRule, 0, 12, rawnl.AppendAttr(nil, 999, make([]byte, 4)))
		}, nil},
		{"with a new attribute", "7.7.7", func(s *netstate.State) {
			for i, m := range s.Messages[netstate.KindRule] {
				if strings.Contains(string(m.Data), "\x0a\x07\x00\x00") {
					add(s, netstate.KindRule, i, 12, number)
				}
			}
		}, []string{"rule 77: from 10.7.0.0/16"}},
		{"with a new option of a link", "7.7.7", func(s *netstate.State) {
			for i, m := range s.Messages[netstate.KindLink] {
				if !strings.Contains(string(m.Data), "vxlan") {
					continue
				}
				attrs := rawnl.Rewrite(m.Data[unix.SizeofIfInfomsg:], func(a rawnl.Attr) (rawnl.Attr, bool) {
					if a.Kind() == unix.IFLA_LINKINFO {
						a.Data = rawnl.Rewrite(a.Data, func(info rawnl.Attr) (rawnl.Attr, bool) {
							if info.Kind() == unix.IFLA_INFO_DATA {
								info.Data = append(slices.Clone(info.Data), number...)
							}
							return info, true
						})
					}
					return a, true
				})
				s.Messages[netstate.KindLink][i].Data = append(slices.Clone(m.Data[:unix.SizeofIfInfomsg]), attrs...)
			}
		}, []string{"link "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := reread(t, capture(t, source, host))
			if c.kernel != "" {
				s.Kernel = c.kernel
			}
			c.alter(s)
			target, opts := newNS(t), netstate.BuildOptions{Host: otherHost(t)}
			if err := netstate.Build(t.Context(), target, s, opts); err != nil {
				t.Fatal(err)
			}
			losses, err := netstate.Ignored(t.Context(), target, s, opts)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(losses, c.want, func(l netstate.Loss, want string) bool {
				return strings.HasPrefix(l.String(), want) && strings.HasSuffix(l.Reason, "999")
			}) {
				t.Errorf("ignored %q, want %q", losses, c.want)
			}
		})
	}
}

// FuzzLacking: a run of attributes lacks nothing of itself, and any two are compared to an end.
func FuzzLacking(f *testing.F) {
	plain := rawnl.AppendAttr(nil, 7, []byte{1, 2, 3, 4})
	f.Add(plain, rawnl.AppendAttr(plain, 9, plain))
	f.Add(rawnl.AppendAttr(nil, 1, plain), rawnl.AppendAttr(nil, 1, rawnl.AppendAttr(plain, 2, plain)))
	f.Fuzz(func(t *testing.T, less, more []byte) {
		if missing, ok := netstate.Lacking(less, more); !ok && missing != nil {
			t.Errorf("%x and %x differ, and %q is missing", less, more, missing)
		}
		if missing, ok := netstate.Lacking(more, more); rawnl.Check(more) == nil && (!ok || missing != nil) {
			t.Errorf("%x lacks %q of itself", more, missing)
		}
	})
}
