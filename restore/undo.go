package restore

import (
	"errors"
	"fmt"
	"slices"
)

// undo is the way back: what was changed on the host, newest last.
type undo struct {
	steps []step
}

type step struct {
	what string
	fn   func() error
}

// push notes how to take back a change that is about to be made. fn must do no harm if the change was not
// made after all.
func (u *undo) push(what string, fn func() error) { u.steps = append(u.steps, step{what, fn}) }

// run takes every change back, newest first, and goes on past failures.
func (u *undo) run() error {
	var errs []error
	for _, v := range slices.Backward(u.steps) {
		if err := v.fn(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", v.what, err))
		}
	}
	u.steps = nil
	return errors.Join(errs...)
}

// keep forgets the way back: the changes stay.
func (u *undo) keep() { u.steps = nil }
