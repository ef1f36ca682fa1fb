package handover_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var errLuck = errors.New("out of luck")

// Migrations as both hosts tell of them, and what the users read in the end.
func TestStories(t *testing.T) {
	for name, prepare := range map[string]func(r *run){
		"moved":   func(*run) {},
		"dry-run": func(r *run) { r.dryRun = true },
		"refused": func(r *run) {
			r.problems[journal.Source] = []checkpoint.Problem{
				{Kind: "process", Object: "sshd (7)", Reason: "it is traced by gdb", Remedy: "detach gdb"},
			}
			r.problems[journal.Destination] = []checkpoint.Problem{
				{Kind: "address", Object: "10.0.0.7", Reason: "it answers here", Remedy: "remove it"},
				{Kind: "pid", Object: "7", Reason: "it is taken", Remedy: "--pidns new"},
			}
		},
		"check-fails":      func(r *run) { r.fail["destination Check"] = errLuck },
		"begin-fails":      func(r *run) { r.fail["source Begin"] = errLuck },
		"build-fails":      func(r *run) { r.fail["destination Build"] = errLuck },
		"freeze-fails":     func(r *run) { r.fail["source Freeze"] = errLuck },
		"resume-fails":     func(r *run) { r.fail["source Freeze"], r.fail["source Resume"] = errLuck, errLuck },
		"store-fails":      func(r *run) { r.fail["destination Store checkpoint/pages.img"] = errLuck },
		"prepare-fails":    func(r *run) { r.fail["destination Prepare"] = errLuck },
		"undo-fails":       func(r *run) { r.fail["destination Prepare"], r.fail["destination Undo"] = errLuck, errLuck },
		"go-live-fails":    func(r *run) { r.fail["destination GoLive"] = errLuck }, // once
		"settle-fails":     func(r *run) { r.fail["destination Settle"] = errLuck },
		"end-fails":        func(r *run) { r.fail["source End"] = errLuck },
		"user-gives-up":    func(r *run) { r.when("keep", r.stopSending) },
		"source-hangs":     func(r *run) { r.when("send-released", func() { time.Sleep(time.Hour) }) },
		"frozen-too-long":  func(r *run) { r.when("prepare", func() { time.Sleep(time.Hour) }) },
		"released-is-lost": func(r *run) { r.when("send-released", func() { r.cutAll() }) },
		"running-is-lost":  func(r *run) { r.when("send-running", func() { r.cutAll() }) },
		"destination-out-of-reach": func(r *run) {
			r.when("send-released", func() {
				r.cutAll()
				r.unreachable = errors.New("dial hostB: no route to host")
			})
		},
		"destination-never-lives": func(r *run) {
			r.stubborn["destination GoLive"] = errLuck
		},
		"destination-forgot": func(r *run) {
			r.when("send-running", func() {
				r.cutAll()
				r.forget(journal.Destination)
			})
		},
		"destination-restarted": func(r *run) {
			r.when("send-running", func() {
				r.cutAll()
				r.restart(journal.Destination)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got string
			synctest.Test(t, func(t *testing.T) {
				r := &run{world: newWorld(t)}
				prepare(r)
				got = r.both(t.Context())
			})
			golden(t, name, got)
		})
	}
}

// stopSending is what a user does who gives up.
func (r *run) stopSending() { r.stop() }

// forget loses a host's state directory.
func (w *world) forget(role journal.Role) {
	w.tell(role, "the state directory is lost")
	if err := os.RemoveAll(w.dir(role).Path); err != nil {
		w.t.Error(err)
	}
}

// both runs both sides to their end, and returns what was told.
func (r *run) both(ctx context.Context) string {
	here, there := pipe(r.world, journal.Source)
	r.cutAll = here.cut
	sending, stop := context.WithCancel(ctx)
	defer stop()
	r.stop = stop
	done := make(chan string)
	go func() {
		report, err := r.receive(ctx, there)
		done <- outcome(report, err)
	}()
	report, err := handover.Send(sending, here, r.dir(journal.Source), &fakeService{r.world}, r.options(journal.Source))
	sent := outcome(report, err)
	received := <-done
	time.Sleep(time.Hour) // until every process has come to its end
	var s strings.Builder
	fmt.Fprintf(&s, "# source\n%s\n%s\nthe copy: %s\n\n", r.told(journal.Source), sent, r.copy(journal.Source))
	fmt.Fprintf(&s, "# destination\n%s\n%s\nthe copy: %s\n", r.told(journal.Destination), received,
		r.copy(journal.Destination))
	told := strings.ReplaceAll(s.String(), filepath.Dir(r.dir(journal.Source).Path), "STATE")
	return regexp.MustCompile(`[0-9a-f]{32}`).ReplaceAllString(told, "ID")
}

func outcome(r *handover.Report, err error) string {
	if err != nil {
		return fmt.Sprintf("%T: %v", err, err)
	}
	s := fmt.Sprintf("%s, blackout %v", r.Outcome, r.Blackout.Round(10*time.Millisecond))
	if r.PeerReport != nil {
		s += fmt.Sprintf(", the other side says %s", r.PeerReport)
	}
	if r.PeerTrouble != "" {
		s += "\ntrouble over there: " + r.PeerTrouble
	}
	if r.Leftover != nil {
		s += "\nleftover: " + r.Leftover.Error()
	}
	return s
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".story")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
