package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// signals turns the signals that ask a program to end into a cancelled context, so that whatever was begun
// is undone before the program ends. Further signals don't hurry it: half of an undo is worse than none.
type signals struct {
	ch     chan os.Signal
	broken chan os.Signal
	got    atomic.Pointer[unix.Signal]
	left   atomic.Bool // somebody else handles signals now
	hangup atomic.Pointer[func()]
}

func catchSignals(parent context.Context, u *ui) (context.Context, *signals) {
	ctx, cancel := context.WithCancel(parent)
	s := &signals{ch: make(chan os.Signal, 8), broken: make(chan os.Signal, 1)}
	signal.Notify(s.ch, unix.SIGINT, unix.SIGTERM)
	if !signal.Ignored(unix.SIGHUP) { // nohup(1)
		signal.Notify(s.ch, unix.SIGHUP)
	}
	// A reader that went away must be an error to roll back from, not our death while a service is frozen.
	signal.Notify(s.broken, unix.SIGPIPE)
	go func() {
		defer cancel()
		for sig := range s.ch {
			sig := sig.(unix.Signal)
			if s.left.Load() {
				continue
			}
			if f := s.hangup.Load(); f != nil && sig == unix.SIGHUP {
				(*f)()
				continue
			}
			if s.got.CompareAndSwap(nil, &sig) {
				cancel()
				u.say("%s: stopping; what can be put back is put back first", unix.SignalName(sig))
			} else {
				u.say("still putting things back")
			}
		}
	}()
	return ctx, s
}

// leave lets somebody else handle the signals from now on, without a moment in which one would kill us. It
// returns the signal that came before, or 0.
func (s *signals) leave() unix.Signal {
	s.left.Store(true)
	if sig := s.got.Load(); sig != nil {
		return *sig
	}
	return 0
}

// onHangup has SIGHUP mean something else than the end, as daemons have it: f is called instead, one at a time.
func (s *signals) onHangup(f func()) {
	s.hangup.Store(&f)
	signal.Notify(s.ch, unix.SIGHUP) // also under nohup(1)
}

func (s *signals) stop() {
	signal.Stop(s.ch)
	signal.Stop(s.broken)
	close(s.ch)
}

// explain marks an error that came of a signal.
func (s *signals) explain(err error) error {
	if sig := s.got.Load(); sig != nil && err != nil {
		return &interruptedError{signal: *sig, err: err}
	}
	return err
}

// interruptedError says that the user ended the program.
type interruptedError struct {
	signal unix.Signal
	err    error
}

func (e *interruptedError) Error() string {
	return fmt.Sprintf("interrupted by %s: %v", unix.SignalName(e.signal), e.err)
}

func (e *interruptedError) Unwrap() error { return e.err }
