package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Listen opens the sockets that systemd passed to us (sd_listen_fds(3)), or if it didn't pass any those of addresses,
// each HOST:PORT, [HOST]:PORT, :PORT or unix:PATH.
func Listen(ctx context.Context, addresses []string) ([]net.Listener, error) {
	passed, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("sockets of systemd: %w", err)
	}
	var all []net.Listener
	for _, l := range passed { // nil is one that isn't a stream's
		if l != nil {
			all = append(all, l)
		}
	}
	if len(all) > 0 {
		return all, nil
	}
	for _, a := range addresses {
		l, err := listen(ctx, a)
		if err != nil {
			for _, l := range all {
				l.Close()
			}
			return nil, fmt.Errorf("listen on %s: %w", a, err)
		}
		all = append(all, l)
	}
	return all, nil
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	path, local := strings.CutPrefix(address, "unix:")
	if !local {
		return new(net.ListenConfig).Listen(ctx, "tcp", address)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if errors.Is(err, unix.EADDRINUSE) && abandoned(ctx, path) {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		l, err = new(net.ListenConfig).Listen(ctx, "unix", path)
	}
	if err != nil {
		return nil, err
	}
	// Who connects is checked too: this keeps others from filling the queue.
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// abandoned says whether a socket is there on which nobody listens.
func abandoned(ctx context.Context, path string) bool {
	if info, err := os.Lstat(path); err != nil || info.Mode().Type() != os.ModeSocket {
		return false
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}
