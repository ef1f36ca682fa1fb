package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// session is an interactive shell over ssh, on a terminal.
type session struct {
	w       *world
	in      io.Writer
	lines   <-chan string
	process *lab.Process
	asked   int
}

// An interactive session goes on, with its terminal, its shell's variables and a command in the background.
func TestSSHSession(t *testing.T) {
	w := newWorld(t)
	conf, options, err := w.A.SSHDConfig(w.ctx, w.svc.IPv4)
	w.check(err)
	w.sh(w.B, "mkdir -p /run/sshd") // which every session looks for
	w.daemon(w.A, inSvc+"%s -D -f %s", lab.SSHDPath, conf)
	w.listening("22")
	s := w.login("root@"+w.svc.IPv4, options)
	s.ask("tty | cut -c1-9; read=yes; export where=somewhere; sleep 100000 & ", "/dev/pts/")
	ls := w.links()
	from, to := w.A, w.B
	for round := range rounds {
		w.migrate(ls, from, to)
		s.ask(fmt.Sprintf("echo $read $where $((%d*2)); stty size | wc -w; jobs -r | wc -l", round), fmt.Sprintf("yes somewhere %d", round*2), "2", "1")
		w.unharmed()
		from, to = to, from
	}
	s.logout()
}

// login opens a session from the client's host.
func (w *world) login(to string, options []string) *session {
	w.Helper()
	args := []string{"-tt", "-e", "none"} // a terminal, although we are none
	for _, o := range options {
		args = append(args, "-o", o)
	}
	cmd := exec.CommandContext(w.ctx, "ssh", append(args, to, "bash --norc")...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	w.check(err)
	out, err := cmd.StdoutPipe()
	w.check(err)
	process, err := w.Client.Start(cmd)
	w.check(err)
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		for text := bufio.NewScanner(out); text.Scan(); {
			lines <- strings.TrimRight(text.Text(), "\r")
		}
	}()
	return &session{w: w, in: in, lines: lines, process: process}
}

// ask types a command and demands its answer, line by line.
func (s *session) ask(command string, want ...string) {
	s.w.Helper()
	s.asked++
	end := fmt.Sprintf("end-of-%d", s.asked)
	// What is typed comes back too, but without the value of the variable.
	_, err := fmt.Fprintf(s.in, "%s\nn=%d; echo end-of-$n\n", command, s.asked)
	s.w.check(err)
	limit := time.After(time.Minute)
	for {
		select {
		case line, ok := <-s.lines:
			switch {
			case !ok:
				s.w.Fatalf("the session ended; still to come: %q", want)
			case strings.HasSuffix(line, end) && len(want) > 0:
				s.w.Fatalf("no answer %q", want)
			case strings.HasSuffix(line, end): // a prompt may stand before it
				return
			case len(want) > 0 && strings.HasSuffix(line, want[0]):
				want = want[1:]
			}
		case <-limit:
			s.w.Fatalf("the session does not answer; still to come: %q", want)
		}
	}
}

// logout ends the session as its user does.
func (s *session) logout() {
	s.w.Helper()
	_, err := fmt.Fprintln(s.in, "kill %1; exit")
	s.w.check(err)
	s.process.Wait(s.w.limit())
	if code := s.process.Cmd.ProcessState.ExitCode(); code != 0 {
		s.w.Errorf("ssh ended with status %d", code)
	}
}
