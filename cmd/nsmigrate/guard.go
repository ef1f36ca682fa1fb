package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/migrate"
)

// guardArg is the first argument of a process that watches over a migration: state directory, ID and role follow it.
const guardArg = "nsguard"

// guardLog is where a guard says what it did, in the journal's folder.
const guardLog = "guard.log"

// guardAsks is how long a guard asks the other host in one go. In between a person can decide, for whom the journal is
// free then.
const guardAsks = 5 * time.Second

// guardTime bounds how long a guard tries to recover; then it is left to a person.
const guardTime = 10 * time.Minute

// guard is the process that recovers when this one dies. It learns of the death by the end of a pipe.
type guard struct {
	cmd  *exec.Cmd
	life *os.File
}

func startGuard(j *journal.Journal) (migrate.Guard, error) {
	log, err := os.OpenFile(filepath.Join(j.Path(), guardLog), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	return startChild(log, log, guardArg, filepath.Dir(j.Path()), j.ID, string(j.Role))
}

// startChild starts this program as a process that outlives this one and reads from it until its end.
func startChild(out, errOut *os.File, args ...string) (*guard, error) {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	g := &guard{cmd: exec.Command("/proc/self/exe", args...), life: ours}
	g.cmd.Dir = "/"
	g.cmd.Stdin = theirs
	if out != nil {
		g.cmd.Stdout = out
	}
	if errOut != nil {
		g.cmd.Stderr = errOut
	}
	g.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // what ends our session or our terminal's must spare it
	if err := g.cmd.Start(); err != nil {
		ours.Close()
		return nil, err
	}
	return g, nil
}

// Dismiss implements [migrate.Guard].
func (g *guard) Dismiss() {
	g.life.Write([]byte{1}) //nolint:errcheck // then it is dead, which is what is wanted
	g.end()
}

// end waits for the end of a process that has heard all there is to hear.
func (g *guard) end() {
	g.life.Close()
	g.cmd.Wait() //nolint:errcheck // how it ended is nobody's concern
}

// beGuard is the guard's life. It returns the exit status.
func beGuard(args []string) status {
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE)
	if len(args) != 3 {
		return statusUsage
	}
	if n, _ := io.ReadFull(os.Stdin, make([]byte, 1)); n == 1 {
		return statusOK // nobody died
	}
	u := newUI(os.Stdin, os.Stdout, os.Stderr)
	u.command = "recover"
	ctx, cancel := context.WithTimeout(context.Background(), guardTime)
	defer cancel()
	dir := journal.Dir{Path: args[0]}
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		r, err := recoverOne(ctx, dir, args[1], journal.Role(args[2]), recoverOptions{askFor: guardAsks})
		switch {
		case err == nil:
			u.say("%s", r)
			return statusOK
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, journal.ErrFinished):
			return statusOK // somebody else was faster
		}
		u.say("%v", err)
		if _, asked := errors.AsType[*handover.InDoubtError](err); asked {
			wait = max(wait, time.Second)
		}
		select {
		case <-ctx.Done():
			return statusError
		case <-time.After(wait):
		}
	}
}
