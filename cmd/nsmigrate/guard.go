package main

import (
	"context"
	"errors"
	"fmt"
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

// guardArg is the first argument of a process that watches over an operation: state directory, ID and role follow it.
const guardArg = "nsguard"

// guardLog is where the guard of a migration says what it did, in the journal's folder. That of a dump or a restore says it
// to whom the process it watches over would have said it.
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
	return startGuardOf(filepath.Dir(j.Path()), j.ID, j.Role, log, log)
}

// startGuardOf starts this program as a process that outlives this one and reads from it until its end. The operation need
// not have a journal yet.
func startGuardOf(stateDir, id string, role journal.Role, out, errOut *os.File) (*guard, error) {
	stateDir, err := filepath.Abs(stateDir)
	if err != nil {
		return nil, err
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	g := &guard{cmd: exec.Command("/proc/self/exe", guardArg, stateDir, id, string(role)), life: ours}
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
		return nil, fmt.Errorf("start what puts things back should this process be killed: %w", err)
	}
	return g, nil
}

// Dismiss implements [migrate.Guard].
func (g *guard) Dismiss() {
	g.life.Write([]byte{1}) //nolint:errcheck // then it is dead, which is what is wanted
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
	w := &watch{ui: u, dir: journal.Dir{Path: args[0]}, id: args[1], role: journal.Role(args[2])}
	if w.role == journal.Dump || w.role == journal.Restore {
		return w.bringToEnd(ctx)
	}
	return w.askAndBringToEnd(ctx)
}

// watch is what a guard does when the process that it watches over has died.
type watch struct {
	*ui
	dir  journal.Dir
	id   string
	role journal.Role
}

func (w *watch) recover(ctx context.Context) (recovered, error) {
	return recoverOne(ctx, w.dir, w.id, w.role, recoverOptions{askFor: guardAsks, deliver: func(tail []byte) error {
		_, err := os.Stdout.Write(tail)
		return err
	}})
}

// bringToEnd ends a dump or a restore. Nobody has to be asked for that.
func (w *watch) bringToEnd(ctx context.Context) status {
	const pause = 10 * time.Millisecond
	for {
		r, err := w.recover(ctx)
		switch {
		case err == nil:
			w.say("nsmigrate was killed: %s", r.what)
			return statusOK
		case errors.Is(err, journal.ErrBusy): // its process is not gone entirely, or somebody was faster
			select {
			case <-ctx.Done():
				return statusError
			case <-time.After(pause):
				continue
			}
		case errors.Is(err, fs.ErrNotExist) && r.ID == "": // it was killed before it began, or when it was done
			w.dir.Clear(w.id, w.role) //nolint:errcheck // an empty folder
			return statusOK
		}
		w.say("nsmigrate was killed, and not everything could be put right: %v\n  hint: `nsmigrate recover %s` tries again", err, w.id)
		return statusError
	}
}

// askAndBringToEnd ends a migration, as soon as the hosts can talk to each other if that is needed.
func (w *watch) askAndBringToEnd(ctx context.Context) status {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		r, err := w.recover(ctx)
		switch {
		case err == nil:
			w.say("%s", r)
			return statusOK
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, journal.ErrFinished):
			return statusOK // somebody else was faster
		}
		w.say("%v", err)
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
