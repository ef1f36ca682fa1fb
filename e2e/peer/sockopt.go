package main

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sockopts are the socket options that a test can set on the service's sockets and read back.
var sockopts = map[string]struct{ level, opt int }{
	"user_timeout":    {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT},
	"nodelay":         {unix.IPPROTO_TCP, unix.TCP_NODELAY},
	"notsent_lowat":   {unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT},
	"keepalive":       {unix.SOL_SOCKET, unix.SO_KEEPALIVE},
	"keepidle":        {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
	"keepintvl":       {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
	"keepcnt":         {unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
	"linger2":         {unix.IPPROTO_TCP, unix.TCP_LINGER2},
	"reuseport":       {unix.SOL_SOCKET, unix.SO_REUSEPORT},
	"reuseaddr":       {unix.SOL_SOCKET, unix.SO_REUSEADDR},
	"priority":        {unix.SOL_SOCKET, unix.SO_PRIORITY},
	"mark":            {unix.SOL_SOCKET, unix.SO_MARK},
	"tos":             {unix.IPPROTO_IP, unix.IP_TOS},
	"ttl":             {unix.IPPROTO_IP, unix.IP_TTL},
	"mss":             {unix.IPPROTO_TCP, unix.TCP_MAXSEG},
	"congestion":      {unix.IPPROTO_TCP, unix.TCP_CONGESTION},
	"defer_accept":    {unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT},
	"thin_lto":        {unix.IPPROTO_TCP, unix.TCP_THIN_LINEAR_TIMEOUTS},
	"window_clamp":    {unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP},
	"max_pacing_rate": {unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE},
}

// optionFlags collects NAME=VALUE arguments.
type optionFlags []string

func (o *optionFlags) String() string     { return strings.Join(*o, ",") }
func (o *optionFlags) Set(s string) error { *o = append(*o, s); return nil }

func (o optionFlags) apply(fd int) error {
	for _, option := range o {
		name, value, _ := strings.Cut(option, "=")
		so, ok := sockopts[name]
		if !ok {
			return fmt.Errorf("unknown socket option %q", name)
		}
		var err error
		if n, perr := strconv.Atoi(value); perr == nil {
			err = unix.SetsockoptInt(fd, so.level, so.opt, n)
		} else {
			err = unix.SetsockoptString(fd, so.level, so.opt, value)
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", option, err)
		}
	}
	return nil
}

// readOptions returns the values of all options of the table that the socket has.
func readOptions(conn net.Conn) map[string]string {
	values := map[string]string{}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil
	}
	raw.Control(func(fd uintptr) {
		for name, so := range sockopts {
			if name == "congestion" {
				values[name], _ = unix.GetsockoptString(int(fd), so.level, so.opt)
			} else if n, err := unix.GetsockoptInt(int(fd), so.level, so.opt); err == nil {
				values[name] = strconv.Itoa(n)
			}
		}
	})
	return values
}
