package transport

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
)

// A copy of our own program is brought by a small conversation with a shell script, over the connection that the
// migration uses then. The script prints a line and waits for what it needs, in turns, so that none of its programs
// reads more than is meant for it:
//
//	they: nsmigrate-push SYSTEM MACHINE DIRECTORY    we: a line with the size, then so many bytes
//	they: nsmigrate-push SHA-256                     we: run, or the end of the stream
//
// The copy lies in a directory that nobody else can enter, and goes when the program has ended, however it ends.

// pushMark begins the script's lines: a shell's startup files may print before.
const pushMark = "nsmigrate-push "

// pushScript is for any POSIX shell, in one line and without quotes and backslashes that other shells, whose users we
// may be, read differently. RUN stands for the command that is run in the end, where "$f" is the copy.
const pushScript = `set -u; umask 077; clean() { rm -rf "$d"; }; ` +
	`for b in "${TMPDIR:-/tmp}" /var/tmp /dev/shm "${HOME:-/root}"; do ` +
	`d=$(mktemp -d "$b/nsmigrate.XXXXXXXXXX" 2>/dev/null) || continue; ` +
	`trap clean EXIT; trap "exit 129" HUP; trap "exit 130" INT; trap "exit 141" PIPE; trap "exit 143" TERM; f=$d/nsmigrate; ` +
	`echo "#!/bin/sh" >"$f" && chmod 700 "$f" && "$f" 2>/dev/null && break; clean; f=; done; ` +
	`if [ -z "${f:-}" ]; then echo "no directory for programs can be written: TMPDIR, /tmp, /var/tmp, /dev/shm, HOME" >&2; exit 1; fi; ` +
	`echo "nsmigrate-push $(uname -s) $(uname -m) $d"; ` +
	`read -r n || exit 1; head -c "$n" >"$f" || exit 1; ` +
	`s=$(sha256sum "$f" 2>/dev/null || shasum -a 256 "$f" 2>/dev/null || openssl dgst -sha256 -r "$f") || exit 1; ` +
	`echo "nsmigrate-push ${s%%%% *}"; read -r go || exit 1; [ "$go" = run ] || exit 1; %s; exit $?`

// pushCommand is the command line of the user's shell over there.
func pushCommand(o SSHOptions) string {
	// The last word of the path is the program; what is before, such as sudo, runs it.
	words := strings.Fields(cmp.Or(o.RemotePath, "nsmigrate"))
	words[len(words)-1] = `"$f"`
	run := strings.Join(words, " ") + " " + o.verb()
	return "exec sh -c '" + fmt.Sprintf(pushScript, run) + "'"
}

// ArchitectureError says that a copy of this program would not run on the other host.
type ArchitectureError struct{ Ours, Theirs string }

func (e *ArchitectureError) Error() string {
	return fmt.Sprintf("the other host is %s, and this program is for %s", e.Theirs, e.Ours)
}

// Remedy says what the user can do.
func (e *ArchitectureError) Remedy() string {
	return "install nsmigrate for " + e.Theirs + " there and leave --push-binary out; processes move only between hosts of the same kind"
}

// push brings our program to the other side and has it run.
func push(ctx context.Context, p io.ReadWriteCloser, o SSHOptions) (io.ReadWriteCloser, error) {
	stop := context.AfterFunc(ctx, func() { p.Close() })
	r := bufio.NewReader(p)
	err := converse(r, p, o)
	if !stop() {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("bring a copy of nsmigrate there: %w", err)
	}
	return &begun{ReadWriteCloser: p, head: r}, nil
}

func converse(r *bufio.Reader, w io.Writer, o SSHOptions) error {
	path := o.Executable
	if path == "" {
		path = "/proc/self/exe" // also if the file was replaced meanwhile
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	line, err := pushLine(r)
	if err != nil {
		return err
	}
	if err := checkMachine(line); err != nil {
		return err
	}
	digest := sha256.New()
	if _, err := fmt.Fprintln(w, info.Size()); err != nil {
		return err
	}
	if n, err := io.Copy(w, io.TeeReader(io.LimitReader(f, info.Size()), digest)); err != nil {
		return err
	} else if n != info.Size() {
		return errors.New("our own program became shorter while it was read")
	}
	got, err := pushLine(r)
	if err != nil {
		return err
	}
	if want := hex.EncodeToString(digest.Sum(nil)); got != want {
		return &hintedError{
			err:  fmt.Errorf("the copy over there is not what was sent: its digest is %.64q", got),
			hint: "see whether there is space in /tmp over there",
		}
	}
	_, err = fmt.Fprintln(w, "run")
	return err
}

// pushLine returns the script's next line.
func pushLine(r *bufio.Reader) (string, error) {
	const most = 64 << 10 // of what startup files print
	var line strings.Builder
	for range most {
		b, err := r.ReadByte()
		switch {
		case errors.Is(err, io.EOF):
			return "", errors.New("the shell over there ended early")
		case err != nil:
			return "", err
		case b != '\n':
			line.WriteByte(b)
			continue
		}
		if text, ok := strings.CutPrefix(line.String(), pushMark); ok {
			return strings.TrimSpace(text), nil
		}
		line.Reset()
	}
	return "", errors.New("the shell over there prints other things than it should")
}

// checkMachine compares "Linux x86_64 /tmp/..." with what our program is for.
func checkMachine(line string) error {
	system, rest, _ := strings.Cut(line, " ")
	machine, _, _ := strings.Cut(rest, " ")
	names := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}
	ours := "Linux " + cmp.Or(names[runtime.GOARCH], runtime.GOARCH)
	if theirs := printable(system + " " + machine); theirs != ours {
		return &ArchitectureError{Ours: ours, Theirs: theirs}
	}
	return nil
}
