package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/offline"
)

// cutShort leaves the journal of an operation of which nothing but the beginning was done, and returns its ID.
func cutShort(t *testing.T, dir journal.Dir, role journal.Role, a offline.About) string {
	t.Helper()
	id := journal.NewID()
	op, err := offline.Begin(dir, id, role, a)
	if err != nil {
		t.Fatal(err)
	}
	if err := op.Leave(); err != nil {
		t.Fatal(err)
	}
	return id
}

// What `nsmigrate recover` says of dumps and restores, for people and for programs.
func TestRecoverOffline(t *testing.T) {
	dir := journal.Dir{Path: filepath.Join(t.TempDir(), "state")}
	dump := cutShort(t, dir, journal.Dump, offline.About{Service: "svc", Image: "/srv/svc.nsm"})
	restore := cutShort(t, dir, journal.Restore, offline.About{Image: "/srv/other.nsm"})
	var out bytes.Buffer
	u := newUI(nil, &out, &out)
	said := func(lines ...string) {
		t.Helper()
		for _, line := range lines {
			if !regexp.MustCompile("(?m)^" + line + "$").MatchString(out.String()) {
				t.Errorf("it does not say %q:\n%s", line, out.String())
			}
		}
		if n := strings.Count(out.String(), "\n"); n != len(lines) {
			t.Errorf("it says %d lines, want %d:\n%s", n, len(lines), out.String())
		}
		out.Reset()
	}
	if err := u.listUnfinished(dir); err != nil {
		t.Fatal(err)
	}
	said(dump+"  dump         begun      svc to /srv/svc.nsm, begun [0-9: -]+",
		restore+"  restore      begun      the service from /srv/other.nsm, begun [0-9: -]+")

	err := u.recover(context.Background(), dir, dump, recoverOptions{force: handover.ForceAbort})
	if err == nil || !strings.Contains(err.Error(), "--force-abort makes no sense of that") {
		t.Errorf("forced: %v", err)
	}
	out.Reset()
	if err := u.recover(context.Background(), dir, "", recoverOptions{}); err != nil {
		t.Fatal(err)
	}
	said("dump "+dump+" of svc: the source is running as before",
		"restore "+restore+" of /srv/other.nsm: nothing is left of the restore on this host, the image is intact")
	if err := u.listUnfinished(dir); err != nil {
		t.Fatal(err)
	}
	said("nothing is unfinished on this host")
}

// What became of a dump is told as it is, also if there is an image although the source runs on.
func TestRecoveredWords(t *testing.T) {
	for want, how := range map[string]offline.Result{
		"the source is running as before":                                  {Outcome: offline.Resumed},
		"the source is running as before, its snapshot /a.nsm is complete": {Outcome: offline.Resumed, Image: "/a.nsm"},
		"the image /a.nsm is complete, the source is removed":              {Outcome: offline.Removed, Image: "/a.nsm"},
		"the service has ended":                                            {Outcome: offline.Gone},
		"the service has ended, its image /a.nsm is complete":              {Outcome: offline.Gone, Image: "/a.nsm"},
		"nothing is left of the restore on this host, the image is intact": {Outcome: offline.Undone},
		"the service is live":                                              {Outcome: offline.Live},
	} {
		var r recovered
		if r.ended(how); r.what != want {
			t.Errorf("%+v: %q, want %q", how, r.what, want)
		}
	}
}

// The end of an image that nobody can write to its stream any more is kept, and told where.
func TestSaveTail(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	var out bytes.Buffer
	if err := newUI(nil, nil, &out).saveTail([]byte("the end")); err != nil {
		t.Fatal(err)
	}
	said := regexp.MustCompile("lacks its last 7 bytes: append (.*) to it").FindStringSubmatch(out.String())
	if said == nil {
		t.Fatalf("it says %q", out.String())
	}
	if b, err := os.ReadFile(said[1]); string(b) != "the end" {
		t.Errorf("%s holds %q, %v", said[1], b, err)
	}
}

// An operation that left something keeps its journal, and its error says how to try again.
func TestOperationEnds(t *testing.T) {
	for _, leftover := range []bool{false, true} {
		dir := journal.Dir{Path: filepath.Join(t.TempDir(), "state")}
		op := &operation{guard: idleGuard(t)}
		var err error
		if op.Operation, err = offline.Begin(dir, journal.NewID(), journal.Dump, offline.About{}); err != nil {
			t.Fatal(err)
		}
		cause := errors.New("the disk is full")
		err = op.end(cause, leftover)
		if !errors.Is(err, cause) || strings.Contains(hintOf(err), "nsmigrate recover "+op.ID()) != leftover {
			t.Errorf("leftover %v: %v, hint %q", leftover, err, hintOf(err))
		}
		list, lerr := dir.List()
		if lerr != nil || (len(list) == 1) != leftover || leftover && list[0].Busy {
			t.Errorf("leftover %v: journals %+v, %v", leftover, list, lerr)
		}
	}
}

// idleGuard is a guard that does nothing but wait for its end.
func idleGuard(t *testing.T) *guard {
	t.Helper()
	theirs, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	g := &guard{cmd: exec.Command("cat"), life: ours}
	g.cmd.Stdin = theirs
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return g
}
