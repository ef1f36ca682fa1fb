package transport

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestMain lets the test's program be the one that systemd starts.
func TestMain(m *testing.M) {
	if os.Getenv("LISTEN_FDS") == "" {
		os.Exit(m.Run())
	}
	os.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid()))
	listeners, err := Listen(context.Background(), []string{":not-used"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, l := range listeners {
		fmt.Println(l.Addr().Network(), l.Addr())
	}
}

// Sockets that systemd opened are taken, and others are not opened then.
func TestActivation(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1")
	out, err := cmd.CombinedOutput()
	if want := "tcp " + l.Addr().String(); err != nil || strings.TrimSpace(string(out)) != want {
		t.Errorf("%s, %v, want %s", out, err, want)
	}
}

func TestListen(t *testing.T) {
	if _, err := Listen(t.Context(), []string{"127.0.0.1:0", "nowhere.invalid:x"}); err == nil {
		t.Error("a port called x")
	}
	listeners, err := Listen(t.Context(), []string{"127.0.0.1:0", "127.0.0.2:0"})
	if err != nil {
		t.Fatal(err)
	}
	if len(listeners) != 2 {
		t.Errorf("%v", listeners)
	}
	for _, l := range listeners {
		l.Close()
	}
}
