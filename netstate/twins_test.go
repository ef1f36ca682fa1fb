package netstate

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// TestTwins changes each parameter of a device in turn: netlink must tell of it, or devices that differ would be
// taken for the same.
func TestTwins(t *testing.T) {
	nstest.NeedRoot(t, "ip")
	n := nstest.New(t)
	nstest.Run(t, n, "ip link add e0 type veth peer name e1; ip link set e0 up; ip link set e1 up")
	nl, err := rawnl.Dial(n, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	find := func() twins {
		t.Helper()
		msgs, err := take(context.Background(), nl, dumps()[0])
		if err != nil {
			t.Fatal(err)
		}
		links, err := (&State{Messages: map[Kind][]rawnl.Message{KindLink: msgs}}).links()
		if err != nil {
			t.Fatal(err)
		}
		same, err := findTwins(context.Background(), nl, links)
		if err != nil {
			t.Fatal(err)
		}
		return same
	}
	first := find()
	if first["e0"] != first["e1"] || first["e0"] == first["lo"] {
		t.Error("e0 and e1 are alike, lo is not")
	}
	changed := 0
	err = n.Do(func() error {
		r := newSysctlReader(nil)
		for _, f := range r.device("e0", perDevice()...) {
			before := find()["e0"]
			value, err := strconv.Atoi(f.value)
			if name, v6 := strings.CutPrefix(f.path, "ipv6/conf/e0/"); err != nil || v6 && !told(name) {
				continue
			}
			// One of these is allowed, unless the parameter can't be set at all.
			if !slices.ContainsFunc([]int{value + 1, value - 1, value / 2, 1280}, func(v int) bool {
				return writeSysctl(f.path, strconv.Itoa(v)) == nil
			}) {
				continue
			}
			if now, _ := readSysctl(unix.AT_FDCWD, sysctlRoot+"/"+f.path, make([]byte, 99)); now == f.value {
				continue
			}
			changed++
			if find()["e0"] == before {
				t.Errorf("netlink does not tell of %s", sysctlName(f.path))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if changed < 80 {
		t.Errorf("only %d parameters could be changed", changed)
	}
}
