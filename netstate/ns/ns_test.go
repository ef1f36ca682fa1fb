package ns_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
)

func create(t *testing.T) *ns.NS {
	t.Helper()
	nstest.NeedRoot(t)
	n := nstest.New(t)
	return n
}

func TestCreateAndDo(t *testing.T) {
	n := create(t)
	before, err := ns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	if before.Inode() == n.Inode() {
		t.Error("the new namespace is the old one")
	}
	err = n.Do(func() error {
		inside, err := ns.Current()
		if err != nil {
			return err
		}
		defer inside.Close()
		if inside.Inode() != n.Inode() {
			t.Errorf("Do ran in %v, want %v", inside, n)
		}
		links, err := net.Interfaces()
		if err == nil && (len(links) == 0 || links[0].Name != "lo") {
			t.Errorf("a fresh namespace has links %v", links)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// The caller never left.
	after, err := ns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	if after.Inode() != before.Inode() {
		t.Errorf("moved from %v to %v", before, after)
	}
	want := errors.New("own")
	if err := n.Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("Do returned %v", err)
	}
}

func TestBind(t *testing.T) {
	n := create(t)
	name := fmt.Sprintf("nsmigrate-test-%d", os.Getpid())
	if err := n.Bind(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Unbind(name) })
	if err := n.Bind(name); !errors.Is(err, ns.ErrNameInUse) {
		t.Errorf("second Bind: %v", err)
	}
	if got, err := n.NameOf(); err != nil || got != name {
		t.Errorf("NameOf: %q, %v", got, err)
	}
	again, err := ns.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	if again.Inode() != n.Inode() {
		t.Errorf("opened %v, want %v", again, n)
	}
	again.Close()
	for range 2 { // a missing name is no error
		if err := ns.Unbind(name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ns.Open(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open after Unbind: %v", err)
	}
	if got, err := n.NameOf(); err != nil || got != "" {
		t.Errorf("NameOf after Unbind: %q, %v", got, err)
	}
}

// TestMainThreadStaysOut enters a namespace from many goroutines, some of which start on the main thread:
// the process itself must never be seen inside, and the namespace must end with its handle.
func TestMainThreadStaysOut(t *testing.T) {
	n := create(t)
	want, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		err := n.Do(func() error {
			if unix.Gettid() == unix.Getpid() {
				t.Error("on the main thread")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.Readlink("/proc/self/ns/net"); err != nil || got != want {
		t.Errorf("the process moved from %s to %s, %v", want, got, err)
	}
}

func TestOpenOther(t *testing.T) {
	if _, err := ns.Open("/dev/null"); !errors.Is(err, ns.ErrNotNetNS) {
		t.Errorf("Open of /dev/null: %v", err)
	}
	if _, err := ns.Open("/proc/self/ns/mnt"); !errors.Is(err, ns.ErrNotNetNS) {
		t.Errorf("Open of a mount namespace: %v", err)
	}
	for _, bad := range []string{"", ".", "..", "a/b", "a\x00"} {
		if ns.CheckName(bad) == nil {
			t.Errorf("%q is accepted as a name", bad)
		}
	}
	n, err := ns.OfPID(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if here, err := ns.Current(); err != nil || here.Inode() != n.Inode() {
		t.Errorf("OfPID of this process is %v, not %v, %v", n, here, err)
	}
}
