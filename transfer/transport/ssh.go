package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
)

// SSHOptions of a connection by ssh. The zero value is useful.
type SSHOptions struct {
	// Args are further arguments of ssh, before those that we give: options that are given first count.
	Args []string `json:"args,omitempty"`
	// RemotePath is what is run over there, read by the shell of the user there: a program's path, or also a command
	// before it such as "sudo -n nsmigrate". Empty is "nsmigrate".
	RemotePath string `json:"remote_path,omitempty"`
	// Verb are the arguments of nsmigrate over there. nil is "receive --stdio". Each is a plain word.
	Verb []string `json:"verb,omitempty"`
	// PushBinary brings a copy of our own program there first, runs that, and removes it afterwards.
	PushBinary bool `json:"push_binary,omitempty"`
	// Executable is the program that PushBinary brings. Empty is our own.
	Executable string `json:"executable,omitempty"`
	// Interactive lets ssh ask for passwords and unknown host keys on the terminal.
	Interactive bool `json:"-"`
	// Program is the ssh client. Empty is "ssh".
	Program string `json:"program,omitempty"`
}

// arguments of the ssh client that runs a command.
func (o SSHOptions) arguments(a Address, command string) []string {
	args := append([]string(nil), o.Args...)
	if !o.Interactive {
		args = append(args, "-o", "BatchMode=yes")
	}
	args = append(args,
		"-T", "-a", "-x", // no terminal over there; neither our agent nor our display
		"-e", "none",
		"-o", "ClearAllForwardings=yes",
		"-o", "Compression=no", // the stream is compressed where that pays
		"-o", "ConnectTimeout=20",
	)
	if a.User != "" {
		args = append(args, "-l", a.User)
	}
	if a.Port != 0 {
		args = append(args, "-p", strconv.Itoa(int(a.Port)))
	}
	return append(args, "--", a.Host, command)
}

func (o SSHOptions) verb() string {
	if o.Verb == nil {
		return "receive --stdio"
	}
	return strings.Join(o.Verb, " ")
}

func dialSSH(ctx context.Context, a Address, opts Options) (io.ReadWriteCloser, error) {
	o := opts.SSH
	program := cmp.Or(o.Program, "ssh")
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, &hintedError{err: err, hint: "install the ssh client (openssh-client), or reach the other host by tls:// or exec:"}
	}
	command := cmp.Or(o.RemotePath, "nsmigrate") + " " + o.verb()
	if o.PushBinary {
		command = pushCommand(o)
	}
	p, err := startProcess(ctx, wrapped(path, o.arguments(a, command)), processOptions{
		stderr: opts.Stderr,
		explain: func(status int, stderr string, err error) *ProcessError {
			return explainSSH(a, o, status, stderr, err)
		},
	})
	if err != nil || !o.PushBinary {
		return p, err
	}
	return push(ctx, p, o)
}

// A symptom is what ssh or the shell over there prints, and what that means.
type symptom struct {
	text string // a part of it; or
	code int    // the status, if the text is empty
	why  string // empty: the last line that was printed
	hint func(a Address, o SSHOptions) string
}

func fixed(s string) func(Address, SSHOptions) string {
	return func(Address, SSHOptions) string { return s }
}

// byHand is how to see what ssh has to say.
func byHand(a Address) string {
	s := "ssh "
	if a.Port != 0 {
		s += fmt.Sprintf("-p %d ", a.Port)
	}
	if a.User != "" {
		s += a.User + "@"
	}
	return "`" + s + a.Host + "`"
}

// symptoms, the more telling first.
func symptoms() []symptom {
	unreachable := fixed("see whether the host is up, the address and the port are right, and no firewall stands between")
	return []symptom{
		{
			text: "REMOTE HOST IDENTIFICATION HAS CHANGED", why: "the host has another key than the one that is known",
			hint: func(a Address, _ SSHOptions) string {
				return "somebody may be in the middle; only if the host was set up anew, forget its old key: ssh-keygen -R " + knownName(a)
			},
		},
		{
			text: "Host key verification failed", why: "the host's key is not known here",
			hint: func(a Address, _ SSHOptions) string {
				return "connect once with " + byHand(a) + " and check the key that it shows, or add it to known_hosts"
			},
		},
		{
			text: "Too many authentication failures", why: "the host refused: too many keys were tried",
			hint: fixed("name the right key in ~/.ssh/config (IdentityFile and IdentitiesOnly)"),
		},
		{
			text: "Permission denied (", why: "permission denied: none of our keys is accepted",
			hint: func(a Address, _ SSHOptions) string {
				return "let " + byHand(a) + " log in without a password: ssh-copy-id, an agent, or a key in ~/.ssh/config"
			},
		},
		{
			text: "Could not resolve hostname", why: "the host's name is not known",
			hint: fixed("see whether the name is right; ssh:// takes names, addresses and aliases of ~/.ssh/config"),
		},
		{text: "Connection refused", why: "the host refuses connections: nothing listens on that port", hint: unreachable},
		{text: "Connection timed out", why: "the host does not answer", hint: unreachable},
		{text: "Operation timed out", why: "the host does not answer", hint: unreachable},
		{text: "No route to host", why: "there is no way to the host", hint: unreachable},
		{text: "Network is unreachable", why: "there is no way to the host", hint: unreachable},
		{
			text: "password is required", why: "sudo over there asks for a password",
			hint: fixed("connect as root, or allow the user there to run nsmigrate by sudo without a password (NOPASSWD)"),
		},
		{
			text: "a terminal is required", why: "sudo over there asks for a password",
			hint: fixed("connect as root, or allow the user there to run nsmigrate by sudo without a password (NOPASSWD)"),
		},
		{
			code: 127, why: "nsmigrate was not found over there",
			hint: func(_ Address, o SSHOptions) string {
				if o.PushBinary {
					return "the other host has no usable shell or tools: install nsmigrate there and give --remote-path"
				}
				return "install it there, say where it is with --remote-path, or let --push-binary bring a copy"
			},
		},
		{
			code: 126, why: "nsmigrate can't be run over there",
			hint: fixed("see whether --remote-path names a program for that host, on a file system without noexec"),
		},
	}
}

// knownName is how known_hosts calls a host.
func knownName(a Address) string {
	if a.Port != 0 && a.Port != 22 {
		return fmt.Sprintf("'[%s]:%d'", a.Host, a.Port)
	}
	return a.Host
}

// explainSSH says why an ssh ended.
func explainSSH(a Address, o SSHOptions, status int, stderr string, err error) *ProcessError {
	if err == nil {
		return nil
	}
	e := &ProcessError{What: "ssh to " + a.Host, Stderr: stderr, Err: err}
	for _, s := range symptoms() {
		// ssh's own troubles have the status 255; what a program prints over there may mean anything.
		if s.text != "" && strings.Contains(stderr, s.text) && (status == 255 || strings.HasSuffix(s.text, "required")) ||
			s.text == "" && s.code == status {
			e.Why, e.Hint = s.why, s.hint(a, o)
			return e
		}
	}
	line := lastLine(stderr)
	switch {
	case line == "" && status == 255:
		e.Why, e.Hint = "the connection broke", "see what "+byHand(a)+" says"
	case line == "":
		e.Why = fmt.Sprintf("nsmigrate over there ended with %v and said nothing", err)
	case status == 255:
		e.Why, e.Hint = line, "see what "+byHand(a)+" says"
	default:
		e.Why = "the other side says: " + line
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && !exit.Exited() {
		e.Why = fmt.Sprintf("the ssh client was ended (%v)", err)
	}
	return e
}
