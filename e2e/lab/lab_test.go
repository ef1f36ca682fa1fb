package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newLab(t *testing.T, o Options) (context.Context, *Lab) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("hosts of namespaces need root")
		}
		t.Skip("hosts of namespaces need root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	l, err := New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(l.Dir); !os.IsNotExist(err) {
			t.Errorf("directory left behind: %v", err)
		}
	})
	return ctx, l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A service namespace on either host is reached by the client, on the LAN and through its default route.
func TestReachability(t *testing.T) {
	for _, mounts := range []Mounts{MountsShared, MountsPrivate} {
		t.Run(string(mounts), func(t *testing.T) {
			ctx, l := newLab(t, Options{Mounts: mounts})
			for _, h := range l.Hosts() {
				svc := Service()
				must(t, h.AddNetNS(ctx, svc))
				for from, to := range map[string]string{
					ClientIPv4: svc.IPv4, ClientFarIPv4: svc.IPv4, ClientIPv6: svc.IPv6, ClientFarIPv6: svc.IPv6,
				} {
					connect(ctx, t, l, h, from, to)
				}
				must(t, h.Script(ctx, "ip netns del svc"))
				must(t, l.Client.Script(ctx, "ip neigh flush all")) // the other host's has another MAC address
			}
		})
	}
}

// A snapshot tells every kind of thing that may stay behind, and forgets it when it's gone.
func TestSnapshot(t *testing.T) {
	ctx, l := newLab(t, Options{})
	before, err := l.A.Snapshot(ctx)
	must(t, err)
	must(t, l.A.AddNetNS(ctx, Service()))
	must(t, l.A.Script(ctx, `
		ip netns exec svc nft add table inet t
		nft add table ip u
		touch /tmp/x /run/y /dev/shm/z
		mkdir /tmp/m
		mount -t tmpfs m /tmp/m
		setsid -f sleep 60 </dev/null >/dev/null 2>&1`))
	must(t, Eventually(ctx, func() error {
		for _, p := range l.A.Processes() {
			if p.Command == "sleep 60" { // the name is there a moment earlier
				return nil
			}
		}
		return errors.New("sleep does not run yet")
	}))
	touched := filepath.Join(l.A.Dir, "image")
	must(t, os.WriteFile(touched, nil, 0o600))
	after, err := l.A.Snapshot(ctx)
	must(t, err)
	diff := strings.Join(before.Diff(after), "\n")
	for _, want := range []string{
		"+ netns svc", "link veth-svc", "netns svc: link eth0", "netns svc: nft table", "host: nft table",
		"file /tmp/x", "file /run/y", "file /dev/shm/z", "mount /tmp/m", "(sleep 60) [alive]", "file " + touched,
	} {
		if !strings.Contains(diff, want) {
			t.Errorf("missing %q in:\n%s", want, diff)
		}
	}
	must(t, l.A.Script(ctx, `
		ip netns del svc
		nft delete table ip u
		umount /tmp/m
		rm -r /tmp/x /run/y /dev/shm/z /tmp/m
		kill $(ps -C sleep -o pid=)`))
	must(t, os.Remove(touched))
	must(t, l.A.Same(ctx, before))
}

// The machine itself sees nothing of a lab but its processes and its directory.
func TestMachineUntouched(t *testing.T) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	ctx, l := newLab(t, Options{})
	must(t, l.A.AddNetNS(ctx, Service()))
	links, err := net.Interfaces()
	must(t, err)
	for _, link := range links {
		if strings.HasPrefix(link.Name, "veth-svc") || strings.HasPrefix(link.Name, "to-host") || link.Name == "sw0" {
			t.Errorf("link %s is in the machine's namespace", link.Name)
		}
	}
	now, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if string(now) != string(mounts) && strings.Contains(string(now), l.Dir) {
		t.Errorf("mounts of the machine changed:\n%s", now)
	}
}

func TestWire(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6"} {
		t.Run(network, func(t *testing.T) {
			ctx, l := newLab(t, Options{})
			w, err := l.Client.Watch("eth0")
			must(t, err)
			defer w.Close()

			var server net.Listener
			must(t, l.A.InNetNS("", func() (err error) {
				server, err = new(net.ListenConfig).Listen(ctx, network, ":7000")
				return err
			}))
			defer server.Close()
			addr := net.JoinHostPort(l.A.IPv4, "7000")
			if network == "tcp6" {
				addr = net.JoinHostPort(l.A.IPv6, "7000")
			}
			var client net.Conn
			must(t, l.Client.InNetNS("", func() (err error) {
				client, err = new(net.Dialer).DialContext(ctx, network, addr)
				return err
			}))
			conn, err := server.Accept()
			must(t, err)
			_, err = client.Write(make([]byte, 100_000))
			must(t, err)
			_, err = io.ReadFull(conn, make([]byte, 100_000))
			must(t, err)
			if got, err := w.Closings(); err != nil || len(got) > 0 {
				t.Fatalf("closings before any: %v, %v", got, err)
			}
			must(t, client.(*net.TCPConn).CloseWrite())
			_, err = io.ReadAll(conn)
			must(t, err)
			if got, err := w.Closings(); err != nil || len(got) != 1 || !got[0].FIN || got[0].Dst.Port() != 7000 {
				t.Fatalf("after a FIN: %v, %v", got, err)
			}
			must(t, conn.(*net.TCPConn).SetLinger(0))
			must(t, conn.Close())
			_, err = io.ReadAll(client)
			if err == nil {
				t.Fatal("no reset")
			}
			if got, err := w.Closings(); err != nil || len(got) != 2 || !got[1].RST || got[1].Src.Port() != 7000 {
				t.Fatalf("after a RST: %v, %v", got, err)
			}
			client.Close()
		})
	}
}

// Orphans of a host are reaped by its init, ids count from far above CRIU's own, and all ends with the lab.
func TestInit(t *testing.T) {
	ctx, l := newLab(t, Options{})
	p, err := l.A.Start(exec.CommandContext(ctx, "sleep", "60"))
	must(t, err)
	must(t, l.A.Script(ctx, "setsid -f sleep 0.01 </dev/null >/dev/null 2>&1"))
	must(t, Eventually(ctx, func() error {
		list := l.A.Processes()
		if len(list) != 1 || list[0].Command != "sleep 60" || list[0].PID < 1000 {
			return fmt.Errorf("processes: %+v", list)
		}
		return nil
	}))
	must(t, l.Close())
	<-p.Done()
}

// connect proves that an address of a service can be reached. It tries until the links are up and the client's own
// IPv6 addresses are known to be unique, before which it asks nobody for a neighbour.
func connect(ctx context.Context, t *testing.T, l *Lab, h *Host, from, to string) {
	t.Helper()
	must(t, h.InNetNS("svc", func() error {
		server, err := net.Listen("tcp", net.JoinHostPort(to, "7000"))
		if err != nil {
			return err
		}
		return server.Close() // the address exists; a refusal proves as much as a connection
	}))
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: time.Second}
	must(t, Eventually(ctx, func() error {
		return l.Client.InNetNS("", func() error {
			if _, err := d.DialContext(ctx, "tcp", net.JoinHostPort(to, "7000")); !errors.Is(err, unix.ECONNREFUSED) {
				return fmt.Errorf("from %s: %w", from, err)
			}
			return nil
		})
	}))
}
