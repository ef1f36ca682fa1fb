package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/restore"
	"github.com/nsmigrate/nsmigrate/transfer/transport"
)

func TestStatusOf(t *testing.T) {
	canceled := &checkpoint.FailedError{Phase: "freeze", Err: context.Canceled}
	stuck := &checkpoint.FailedError{Phase: "freeze", Err: context.Canceled, Stuck: errors.New("no")}
	interrupted := func(err error) error { return &interruptedError{signal: unix.SIGINT, err: err} }
	for _, tt := range []struct {
		err  error
		want status
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{fs.ErrNotExist, 1},
		{usagef("", "x"), 2},
		{checkpoint.Refuse("dump", []checkpoint.Problem{{Kind: "a"}}), 3},
		{&transport.RefusedError{Reason: transport.Busy}, 3},
		{&criu.NotFoundError{}, 3},
		{&criu.TooOldError{}, 3},
		{canceled, 4},
		{&checkpoint.FailedError{Err: context.DeadlineExceeded}, 4},
		{&checkpoint.FailedError{Err: checkpoint.ErrDamaged}, 8},
		{stuck, 5},
		{interrupted(stuck), 5},
		{interrupted(canceled), 130},
		{interrupted(context.Canceled), 130},
		{&restore.Error{Err: errors.New("x")}, 6},
		{&restore.Error{Err: errors.New("x"), Leftover: errors.New("y")}, 7},
		{interrupted(&restore.Error{Err: context.Canceled}), 130},
		{interrupted(&restore.Error{Err: context.Canceled, Leftover: errors.New("y")}), 7},
		{&leftBehindError{err: errors.New("x")}, 7},
		{checkpoint.ErrDamaged, 8},
		{checkpoint.ErrFormat, 8},
		{&notReadyError{}, 9},
	} {
		if got := statusOf(tt.err); got != tt.want {
			t.Errorf("statusOf(%v) = %d, want %d", tt.err, got, tt.want)
		}
		if tt.err == nil {
			continue
		}
		if got := statusOf(fmt.Errorf("wrapped: %w", tt.err)); got != tt.want {
			t.Errorf("statusOf(wrapped %v) = %d, want %d", tt.err, got, tt.want)
		}
	}
}

func TestFail(t *testing.T) {
	refused := checkpoint.Refuse("dump", []checkpoint.Problem{
		{Kind: "socket", Object: "*:80", Reason: "it is MPTCP", Remedy: "GODEBUG=multipathtcp=0"},
		{Kind: "qdisc", Object: "htb", Reason: "not carried", Loss: true},
	})
	var out, errOut bytes.Buffer
	u := newUI(nil, &out, &errOut)
	u.command = "dump"
	if got := u.fail(refused); got != 3 {
		t.Errorf("exit status %d, want 3", got)
	}
	want := `nsmigrate: dump refused, nothing was changed:
socket *:80: it is MPTCP
  hint: GODEBUG=multipathtcp=0
qdisc htb: not carried
  hint: to go on without what can be left behind: --allow-loss qdisc
`
	if got := errOut.String(); got != want {
		t.Errorf("text:\n%s\nwant:\n%s", got, want)
	}

	errOut.Reset()
	u.json = true
	u.fail(refused)
	var doc struct{ Error problemJSON }
	if err := json.Unmarshal(errOut.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	e := doc.Error
	if e.Class != "refused" || e.Status != 3 || len(e.Problems) != 2 || strings.Contains(e.Message, "MPTCP") {
		t.Errorf("JSON: %+v", e)
	}
	if out.Len() != 0 {
		t.Errorf("an error wrote to standard output: %q", out.String())
	}

	errOut.Reset()
	if got := u.fail(serviceExit(42)); got != 42 || errOut.Len() != 0 {
		t.Errorf("a service's exit status: %d and %q; want 42 and nothing", got, errOut.String())
	}
}
