package transport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"
)

// Scheme is a way to reach another host.
type Scheme string

// The ways.
const (
	SSH  Scheme = "ssh"
	TLS  Scheme = "tls"
	Exec Scheme = "exec"
	Unix Scheme = "unix"
)

// DefaultPort is where `nsmigrate serve` listens if nothing else is said.
const DefaultPort = 8747

// Address says where the other side is and how it is reached.
type Address struct {
	Scheme  Scheme
	User    string // ssh: may be empty
	Host    string // ssh: may be an alias of ~/.ssh/config; tls: a name or an address, without brackets
	Port    uint16 // ssh: 0 is ssh's own choice; tls: never 0
	Path    string // unix: of the socket
	Command string // exec: for /bin/sh
}

// String is what Parse reads.
func (a Address) String() string {
	switch a.Scheme {
	case Exec:
		return "exec:" + a.Command
	case Unix:
		return "unix:" + a.Path
	}
	s := string(a.Scheme) + "://"
	if a.User != "" {
		s += a.User + "@"
	}
	host := a.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	s += host
	if a.Port != 0 {
		s += ":" + strconv.Itoa(int(a.Port))
	}
	return s
}

// AddressError says what is wrong with the text of an address.
type AddressError struct {
	Text string
	Err  error
}

func (e *AddressError) Error() string { return fmt.Sprintf("%q is no address: %v", e.Text, e.Err) }

func (e *AddressError) Unwrap() error { return e.Err }

// Remedy says what the user can do.
func (e *AddressError) Remedy() string {
	return "write ssh://[USER@]HOST[:PORT], tls://HOST[:PORT], unix:PATH or exec:COMMAND"
}

// Parse reads ssh://[user@]host[:port], tls://host[:port], unix:path or exec:command. Its error is an *AddressError.
func Parse(text string) (Address, error) {
	a, err := parse(text)
	if err != nil {
		return Address{}, &AddressError{Text: text, Err: err}
	}
	return a, nil
}

func parse(text string) (Address, error) {
	scheme, rest, ok := strings.Cut(text, ":")
	if !ok {
		return Address{}, errors.New("it does not say how the other host is reached")
	}
	switch Scheme(scheme) {
	case SSH, TLS:
		return parseHost(Scheme(scheme), rest)
	case Unix:
		switch {
		case strings.HasPrefix(rest, "//"):
			rest = rest[2:] // as in a URL
		case rest == "":
			return Address{}, errors.New("the path of the socket is missing")
		}
		if strings.ContainsRune(rest, 0) || len(rest) > 107 { // unix(7)
			return Address{}, errors.New("that can't be the path of a socket")
		}
		return Address{Scheme: Unix, Path: filepath.Clean(rest)}, nil
	case Exec:
		if strings.TrimSpace(rest) == "" || strings.ContainsRune(rest, 0) {
			return Address{}, errors.New("the command is missing")
		}
		return Address{Scheme: Exec, Command: rest}, nil
	}
	return Address{}, fmt.Errorf("there is no transport called %q", scheme)
}

func parseHost(scheme Scheme, rest string) (Address, error) {
	rest, ok := strings.CutPrefix(rest, "//")
	if !ok {
		return Address{}, fmt.Errorf("after %s: comes //", scheme)
	}
	rest = strings.TrimSuffix(rest, "/")
	a := Address{Scheme: scheme}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		a.User, rest = rest[:at], rest[at+1:]
		switch {
		case scheme == TLS:
			return a, errors.New("with TLS the certificate says who we are, not a user's name")
		case strings.Contains(a.User, ":"):
			return a, errors.New("a password can't be given here; ssh asks for it, or use keys")
		case a.User == "" || !word(a.User):
			return a, fmt.Errorf("%q can't be a user", a.User)
		}
	}
	port := ""
	switch {
	case strings.HasPrefix(rest, "["):
		end := strings.IndexByte(rest, ']')
		if end < 0 {
			return a, errors.New("a bracket is not closed")
		}
		addr, err := netip.ParseAddr(rest[1:end])
		if err != nil {
			return a, err
		}
		a.Host, port = addr.String(), rest[end+1:]
	case strings.Count(rest, ":") > 1:
		return a, errors.New("an IPv6 address goes in brackets")
	default:
		if colon := strings.IndexByte(rest, ':'); colon >= 0 {
			rest, port = rest[:colon], rest[colon:]
		}
		a.Host = rest
	}
	if a.Host == "" || !word(a.Host) {
		return a, fmt.Errorf("%q can't be a host", a.Host)
	}
	if port != "" {
		n, err := strconv.ParseUint(strings.TrimPrefix(port, ":"), 10, 16)
		if err != nil || n == 0 || port[0] != ':' {
			return a, fmt.Errorf("%q can't be a port", strings.TrimPrefix(port, ":"))
		}
		a.Port = uint16(n)
	} else if scheme == TLS {
		a.Port = DefaultPort
	}
	return a, nil
}

// word says whether s can be a user or a host: nothing that ssh takes for an option, a shell for something else, or a
// person for nothing. (OpenSSH refuses shell metacharacters too.)
func word(s string) bool {
	return !strings.HasPrefix(s, "-") && !strings.ContainsFunc(s, func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsGraphic(r) || unicode.IsSpace(r) || strings.ContainsRune("'`\"$\\;&<>|(){}/?#@[]", r)
	})
}

// hostPort is for net.Dial.
func (a Address) hostPort() string { return net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port))) }
