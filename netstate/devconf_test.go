package netstate

import (
	"context"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// TestTold changes each parameter of a device in turn: what is taken from netlink must be what the file shows.
func TestTold(t *testing.T) {
	nstest.NeedRoot(t, "ip")
	n := nstest.New(t)
	nstest.Run(t, n, "ip link add e0 type veth peer name e1; ip link set e0 up; ip link set e1 up")
	nl, err := rawnl.Dial(n, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	// compare returns the values of the files of a device in a directory, and how many of them netlink told.
	compare := func(dev, dir string) (values map[string]string, count int) {
		t.Helper()
		links, err := dumpLinks(context.Background(), nl)
		if err != nil {
			t.Fatal(err)
		}
		all, err := tell(context.Background(), n, links)
		if err != nil {
			t.Fatal(err)
		}
		values, known := map[string]string{}, toldParams(dir)
		newSysctlReader(nil).device(dev, dir, func(name, value string) {
			values[name] = value
			if p, ok := known[name]; ok {
				if told, ok := p.in(dir, all[deviceDir{dev, dir}]); ok && told != value {
					t.Errorf("%s/%s/%s is %s, and netlink is taken to tell %s", dir, dev, name, value, told)
				} else if ok {
					count++
				}
			}
		})
		return values, count
	}
	changed := 0
	err = n.Do(func() error {
		for _, dir := range perDevice() {
			for _, dev := range []string{"lo", "e0"} {
				if values, count := compare(dev, dir); count < len(values)*9/10 {
					t.Errorf("netlink tells %d of %d parameters in %s/%s", count, len(values), dir, dev)
				}
			}
			values, _ := compare("e0", dir)
			for name, value := range values {
				number, err := strconv.Atoi(value)
				if err != nil {
					continue
				}
				// One of these is allowed, unless the parameter can't be set at all.
				set := func(v int) bool { return writeSysctl(dir+"/e0/"+name, strconv.Itoa(v)) == nil }
				if !slices.ContainsFunc([]int{number + 1, number - 1, number / 2, 1280}, set) {
					continue
				}
				if now, _ := compare("e0", dir); now[name] != value {
					changed++
				}
				for _, v := range []int{-1, 1, 3, 1<<31 - 1} { // what the units make of it
					if set(v) && !t.Failed() {
						compare("e0", dir)
					}
				}
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
