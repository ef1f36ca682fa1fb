package netstate

import (
	"context"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
)

// awaits waits for a link named near whose other end is far, for as long as it takes, but the test's patience.
func awaits(t *testing.T, script string, done func(*link) bool) error {
	t.Helper()
	nstest.NeedRoot(t, "ip")
	n := nstest.New(t)
	nstest.Run(t, n, "ip link add near type veth peer name far; "+script)
	h, err := openHost(n)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close(n)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	near, _, err := h.linkByName(ctx, "near")
	if err != nil {
		t.Fatal(err)
	}
	looks := 0
	return h.awaitLink(ctx, near.index, time.Hour, func(l *link) bool {
		if looks++; looks == 2 { // the kernel has been asked to tell by now
			nstest.Run(t, n, "ip link set near up")
		}
		return done(l)
	})
}

// A link in operation is not waited for, nor is one that can't get into it.
func TestAwaitNothing(t *testing.T) {
	for name, script := range map[string]string{
		"up":                          "ip link set near up; ip link set far up",
		"no carrier":                  "ip link set near up",
		"down":                        "ip link set far up",
		"under a bridge that is down": "ip link add both type bridge; ip link set near master both up; ip link set far up",
		"dormant":                     "ip link set near mode dormant; ip link set near up; ip link set far up",
	} {
		t.Run(name, func(t *testing.T) {
			if err := awaits(t, script, func(l *link) bool { return l.noticed() }); err != nil {
				t.Error(err)
			}
		})
	}
}

// A change of a link ends the wait for it, not only its time.
func TestAwaitChange(t *testing.T) {
	if err := awaits(t, "", func(l *link) bool { return l.flags&iffUp != 0 }); err != nil {
		t.Error(err)
	}
}
