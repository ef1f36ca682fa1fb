package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// script writes a program for /bin/sh.
func script(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// fakeSSH puts a program called ssh into the path: it writes its arguments down and then does what it is told. It
// returns the file with the arguments, one a line.
func fakeSSH(t *testing.T, does string) string {
	t.Helper()
	dir := t.TempDir()
	args := filepath.Join(dir, "args")
	script(t, filepath.Join(dir, "ssh"), fmt.Sprintf("printf '%%s\\n' \"$@\" >'%s'\n%s", args, does))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return args
}

// runLast is an ssh that runs the command here, as sshd would with a shell over there.
const runLast = `for last; do :; done; exec sh -c "$last"`

// nsmigrateThere puts a program called nsmigrate into the path, which says hello and echoes.
func nsmigrateThere(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	script(t, filepath.Join(dir, "nsmigrate"), `[ "$1 $2" = "receive --stdio" ] || exit 2; printf 'nsmwire\nhello'; exec cat`)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestSSH(t *testing.T) {
	args := fakeSSH(t, runLast)
	nsmigrateThere(t)
	a := Address{Scheme: SSH, User: "root", Host: "host", Port: 2222}
	conn, err := Dial(t.Context(), a, Options{SSH: SSHOptions{Args: []string{"-o", "ConnectTimeout=1"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	talk(t, conn)
	text, err := os.ReadFile(args)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(string(text)), "\n")
	if got[0] != "-o" || got[1] != "ConnectTimeout=1" || !slices.Contains(got, "BatchMode=yes") ||
		!strings.HasSuffix(string(text), "-l\nroot\n-p\n2222\n--\nhost\nnsmigrate receive --stdio\n") {
		t.Errorf("%q", got)
	}
}

// ssh may ask where there is somebody to ask.
func TestInteractive(t *testing.T) {
	a := Address{Scheme: SSH, Host: "host"}
	if got := (SSHOptions{Interactive: true}).arguments(a, "true"); slices.Contains(got, "BatchMode=yes") || slices.Contains(got, "-l") {
		t.Errorf("%q", got)
	}
}

// The real client understands the arguments.
func TestRealClient(t *testing.T) {
	path, err := exec.LookPath("ssh")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	args := SSHOptions{}.arguments(Address{Scheme: SSH, User: "me", Host: "host.invalid", Port: 2222}, "true")
	out, err := exec.Command(path, append([]string{"-F", "none", "-G"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"user me", "hostname host.invalid", "port 2222", "batchmode yes", "requesttty false", "compression no"} {
		if !strings.Contains(string(out), want+"\n") {
			t.Errorf("%q is not in %s", want, out)
		}
	}
}

// What ssh says when it fails is understood, and something to do about it is known.
func TestSSHFails(t *testing.T) {
	for _, test := range []struct{ stderr, status, why, hint string }{
		{"WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.", "255", "another key", "ssh-keygen -R '[host]:2222'"},
		{"No ED25519 host key is known for host and you have requested strict checking.\r\nHost key verification failed.\r", "255", "key is not known here", "`ssh -p 2222 root@host`"},
		{"root@host: Permission denied (publickey,password).", "255", "none of our keys is accepted", "ssh-copy-id"},
		{"ssh: Could not resolve hostname host: Name or service not known", "255", "name is not known", "name is right"},
		{"ssh: connect to host host port 2222: Connection refused", "255", "refuses connections", "the port"},
		{"ssh: connect to host host port 2222: Connection timed out", "255", "does not answer", "firewall"},
		{"ssh: connect to host host port 2222: No route to host", "255", "no way to the host", "firewall"},
		{"Received disconnect from 10.0.0.1 port 22:2: Too many authentication failures", "255", "too many keys", "IdentitiesOnly"},
		{"kex_exchange_identification: read: Connection reset by peer", "255", "kex_exchange_identification", "see what `ssh -p 2222 root@host` says"},
		{"", "255", "the connection broke", "see what"},
		{"bash: line 1: nsmigrate: command not found", "127", "nsmigrate was not found over there", "--push-binary"},
		{"sh: 1: nsmigrate: Permission denied", "126", "can't be run", "noexec"},
		{"sudo: a password is required", "1", "sudo over there asks for a password", "NOPASSWD"},
		{"nsmigrate: receive: refused\n  hint: \x1b[31mred", "3", "the other side says: hint:  [31mred", ""},
		{"Permission denied (not ssh's)", "4", "the other side says: Permission denied (not ssh's)", ""},
		{"", "3", "ended with exit status 3 and said nothing", ""},
	} {
		fakeSSH(t, fmt.Sprintf("cat >&2 <<'END'\n%s\nEND\nexit %s", test.stderr, test.status))
		_, err := Dial(t.Context(), Address{Scheme: SSH, User: "root", Host: "host", Port: 2222}, Options{})
		e, ok := errors.AsType[*ProcessError](err)
		if !ok || !strings.HasPrefix(err.Error(), "connect to ssh://root@host:2222: ssh to host: ") ||
			!strings.Contains(err.Error(), test.why) || !strings.Contains(e.Remedy(), test.hint) || test.hint == "" && e.Remedy() != "" {
			t.Errorf("%q, %s: %v", test.stderr, test.status, err)
		}
	}
}

// A connection that breaks later says why too, to whoever reads and to whoever writes.
func TestSSHBreaks(t *testing.T) {
	fakeSSH(t, `printf 'nsmwire\nhello'; read line; echo "client_loop: send disconnect: Broken pipe" >&2; exit 255`)
	conn, err := Dial(t.Context(), Address{Scheme: SSH, Host: "host"}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "go\n"); err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(conn)
	if e, ok := errors.AsType[*ProcessError](err); !ok || !strings.Contains(e.Why, "send disconnect") {
		t.Error(err)
	}
	for err = nil; err == nil; {
		_, err = conn.Write(make([]byte, 4096))
	}
	if e, ok := errors.AsType[*ProcessError](err); !ok || !strings.Contains(e.Stderr, "send disconnect") {
		t.Error(err)
	}
}

func TestNoSSH(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	refuse(t, Address{Scheme: SSH, Host: "host"}, Files{}, "executable file not found")
}

// Dial gives an ssh up that says nothing, and Close one that does not end.
func TestSSHHangs(t *testing.T) {
	args := fakeSSH(t, "exec sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			if _, err := os.Stat(args); err == nil {
				cancel()
				return
			}
		}
	}()
	if _, err := Dial(ctx, Address{Scheme: SSH, Host: "host"}, Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A copy is brought, run with what it needs, and removed, whatever shell is there and what it prints.
func TestPush(t *testing.T) {
	path := os.Getenv("PATH")
	for _, shell := range []string{"dash", "bash", "busybox", "zsh", "ksh"} {
		there, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		t.Run(shell, func(t *testing.T) {
			tools := t.TempDir()
			for _, name := range []string{"sh", "head", "sha256sum", "mktemp"} {
				if name != "sh" && shell != "busybox" {
					continue
				}
				if err := os.Symlink(there, filepath.Join(tools, name)); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PATH", path)
			there := t.TempDir()
			t.Setenv("TMPDIR", there)
			fakeSSH(t, "PATH="+tools+":$PATH; echo Welcome to this host; echo; "+runLast)
			// Larger than what a pipe holds, so that parts of it are under way when the script reads others.
			program := script(t, filepath.Join(t.TempDir(), "pushed"),
				`[ "$*" = "receive --stdio" ] && printf 'nsmwire\nhello' && echo "I am $0" >&2 && exec cat; exit 9`+"\n"+
					strings.Repeat("# something to carry\n", 200_000))
			var stderr tail
			o := Options{SSH: SSHOptions{PushBinary: true, Executable: program, RemotePath: "env nsmigrate"}, Stderr: &stderr}
			conn, err := Dial(t.Context(), Address{Scheme: SSH, Host: "host"}, o)
			if err != nil {
				t.Fatal(err, stderr.String())
			}
			talk(t, conn)
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			if !strings.Contains(stderr.String(), "I am "+there+"/nsmigrate.") {
				t.Errorf("it ran elsewhere: %s", stderr.String())
			}
			if left, err := os.ReadDir(there); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// Whatever goes wrong with the copy, nothing of it runs or stays.
func TestPushFails(t *testing.T) {
	path := os.Getenv("PATH")
	program := script(t, filepath.Join(t.TempDir(), "pushed"), "echo it ran >&2; cat")
	for _, test := range []struct{ name, tool, does, want string }{
		{"other machine", "uname", `case $1 in -s) echo Linux;; -m) echo pdp11;; esac`, "the other host is Linux pdp11, and this program is for Linux "},
		{"altered", "head", `cat >/dev/null & printf x; exec sleep 0`, "the copy over there is not what was sent"},
		{"disk full", "head", `echo "head: write error: No space left on device" >&2; exit 1`, "No space left on device"},
		{"no directory", "mktemp", `exit 1`, "no directory for programs can be written"},
		{"no shell", "sh", `echo "sh: not found" >&2; exit 127`, "nsmigrate was not found over there"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("PATH", path)
			there, tools := t.TempDir(), t.TempDir()
			script(t, filepath.Join(tools, test.tool), test.does)
			t.Setenv("TMPDIR", there)
			fakeSSH(t, "PATH="+tools+`:$PATH; for last; do :; done; exec /bin/bash -c "$last"`)
			var stderr tail
			o := Options{SSH: SSHOptions{PushBinary: true, Executable: program}, Stderr: &stderr}
			conn, err := Dial(t.Context(), Address{Scheme: SSH, Host: "host"}, o)
			if err == nil {
				conn.Close()
				t.Fatal("a connection")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if strings.Contains(stderr.String(), "it ran") {
				t.Error("it ran")
			}
			if left, err := os.ReadDir(there); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// Our own program is what is pushed unless another one is named.
func TestPushSelf(t *testing.T) {
	if testing.Short() {
		t.Skip("copies the test's program")
	}
	there := t.TempDir()
	t.Setenv("TMPDIR", there)
	fakeSSH(t, runLast)
	var stderr tail
	o := Options{SSH: SSHOptions{PushBinary: true, Verb: []string{"-test.run=^$"}}, Stderr: &stderr}
	conn, err := Dial(t.Context(), Address{Scheme: SSH, Host: "host"}, o)
	if err != nil {
		t.Fatal(err, stderr.String())
	}
	if got, err := io.ReadAll(conn); err != nil || !strings.Contains(string(got), "PASS") && !strings.Contains(string(got), "testing: warning") {
		t.Errorf("%q, %v", got, err)
	}
	conn.Close()
	if left, err := os.ReadDir(there); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestExec(t *testing.T) {
	conn, err := Dial(t.Context(), Address{Scheme: Exec, Command: `printf 'nsmwire\nhello'; cat; echo done >&2`}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	talk(t, conn)
	for command, want := range map[string]string{
		"echo no luck >&2; exit 5":   "the command: it ended with exit status 5: no luck",
		"/nowhere/nsmigrate receive": "the command: it ended with exit status 127: ",
		"true":                       "closed the connection before it said anything",
	} {
		if _, err := Dial(t.Context(), Address{Scheme: Exec, Command: command}, Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", command, err)
		}
	}
}

// The signals of a terminal don't reach the connection: what is put back after Ctrl-C needs it.
func TestSignals(t *testing.T) {
	conn, err := Dial(t.Context(), Address{Scheme: Exec, Command: `printf nsmwire; kill -INT $$; kill -TERM $$; kill -HUP $$; printf ' alive'`}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "nsmwire alive" {
		t.Errorf("%q, %v", got, err)
	}
}

// Of what is printed without end the last is kept.
func TestTail(t *testing.T) {
	var kept tail
	for range 100 {
		fmt.Fprint(&kept, strings.Repeat("x", 1000), "\n")
	}
	fmt.Fprint(&kept, "the end\r\n\n")
	if n := len(kept.String()); n > tailSize {
		t.Errorf("%d bytes are kept", n)
	}
	if got := lastLine(kept.String()); got != "the end" {
		t.Errorf("%q", got)
	}
}
