package handover_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// kind is what happens at a step.
type kind string

const (
	kill    kind = "kill"    // the process
	fail    kind = "fail"    // the step
	cut     kind = "cut"     // the connection
	cancel  kind = "cancel"  // the user has enough
	restart kind = "restart" // the host
)

// trouble is a kind of fault at a step: the nth of all that both hosts take.
type trouble struct {
	kind kind
	nth  int
}

// run is a migration with troubles, and what follows until it is over.
type run struct {
	*world
	asks bool // nobody looks after the destination but a source that asks

	mu     sync.Mutex
	plan   []trouble
	count  int
	where  []string // the troubles happened
	cutAll func()
	stop   context.CancelFunc
}

func (r *run) at(s handover.Step) error {
	r.mu.Lock()
	var k kind
	if len(r.plan) > 0 && r.plan[0].nth == r.count {
		k = r.plan[0].kind
		r.plan = r.plan[1:]
		r.where = append(r.where, fmt.Sprintf("%s at %s", k, s))
	}
	r.count++
	r.mu.Unlock()
	switch k {
	case kill:
		r.crash(s.Role)
		runtime.Goexit()
	case restart:
		r.cutAll()
		r.world.restart(s.Role)
		runtime.Goexit()
	case fail:
		return errors.New("out of luck")
	case cut:
		r.cutAll()
	case cancel:
		r.stop()
	}
	return nil
}

// process runs f to its end, or until it is killed.
func process(f func()) (ended chan struct{}) {
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		f()
	}()
	return ended
}

// play runs the migration and then recovers whatever is left, until nothing is.
func (r *run) play(ctx context.Context) (sent *handover.Report, err error) {
	r.world.at = r.at
	here, there := pipe(r.world, journal.Source)
	r.cutAll = here.cut
	sending, stop := context.WithCancel(ctx)
	r.stop = stop
	err = errors.New("killed")
	source := process(func() {
		sent, err = handover.Send(sending, here, r.dir(journal.Source), &fakeService{r.world}, r.options(journal.Source))
	})
	destination := process(func() { r.receive(ctx, there) })
	<-source
	<-destination
	for tries := 0; tries < 3 && !r.over(); tries++ {
		troubles := len(r.where)
		source := process(func() { r.recoverSource(ctx) })
		destination := process(func() {
			if !r.asks || r.unfinished(journal.Source) == nil {
				r.recoverDestination(ctx)
			}
		})
		<-source
		<-destination
		if len(r.where) > troubles {
			tries = 0
		}
	}
	return sent, err
}

func (r *run) recoverSource(ctx context.Context) {
	if c := r.unfinished(journal.Source); c != nil {
		r.tell(journal.Source, "recovery")
		j, err := r.dir(journal.Source).Open(c.ID, journal.Source)
		if err == nil {
			handover.RecoverSource(ctx, j, &fakeService{r.world}, "", r.options(journal.Source))
		}
	}
}

func (r *run) recoverDestination(ctx context.Context) {
	if c := r.unfinished(journal.Destination); c != nil {
		r.tell(journal.Destination, "recovery")
		j, err := r.dir(journal.Destination).Open(c.ID, journal.Destination)
		if err == nil {
			handover.RecoverDestination(ctx, j, &fakeHost{r.world}, "", r.options(journal.Destination))
		}
	}
}

// unfinished returns the journal of a host that is to be worked on, or nil.
func (w *world) unfinished(role journal.Role) *journal.Content {
	list, err := w.dir(role).List()
	if err != nil {
		w.t.Error(err)
	}
	i := slices.IndexFunc(list, func(c *journal.Content) bool { return !c.Finished() })
	if i < 0 {
		return nil
	}
	return list[i]
}

// lost reports whether the service was to live on the destination when that was restarted.
func (w *world) lost() bool {
	list, err := w.dir(journal.Destination).List()
	if err != nil {
		w.t.Error(err)
	}
	return slices.ContainsFunc(list, func(c *journal.Content) bool {
		return c.Tombstone == journal.Lost || c.Tombstone == journal.Live && c.Rebooted()
	})
}

func (w *world) over() bool {
	return w.unfinished(journal.Source) == nil && w.unfinished(journal.Destination) == nil
}

// check makes sure that it is over, and as it must be.
func (r *run) check(t *testing.T, sent *handover.Report, err error) {
	t.Helper()
	var wrong []string
	s, d := r.copy(journal.Source), r.copy(journal.Destination)
	if !r.over() && !(r.lost() && s == stopped) { // then a person has to decide
		wrong = append(wrong, "it isn't over")
	}
	switch {
	case s == runs && d == none && !r.served, s == none && d == runs:
	case r.booted[journal.Source] && s == none && d == none && !r.served:
	case r.booted[journal.Destination] && d == none && (s == none || r.lost() && s == stopped):
	default:
		wrong = append(wrong, fmt.Sprintf("on the source it is %s, on the destination %s", s, d))
	}
	failed, _ := errors.AsType[*handover.FailedError](err)
	if err == nil && sent.Outcome == handover.Moved && d != runs && !r.booted[journal.Destination] {
		wrong = append(wrong, "it is said to have moved")
	}
	if failed != nil && failed.Stuck == nil && s != runs {
		wrong = append(wrong, "it is said to run on the source: "+err.Error())
	}
	if len(wrong) > 0 {
		t.Errorf("%s:\n%s\nsource:\n%sdestination:\n%s", strings.Join(r.where, ", "), strings.Join(wrong, "\n"),
			r.told(journal.Source), r.told(journal.Destination))
	}
}

// Whatever happens at whichever step, and then at another one, the service lives once in the end.
func TestMatrix(t *testing.T) {
	steps := 0
	synctest.Test(t, func(t *testing.T) {
		r := &run{world: newWorld(t)}
		sent, err := r.play(t.Context())
		r.check(t, sent, err)
		r.asked.Wait()
		steps = r.count
	})
	seen := map[handover.Step]bool{}
	seconds := []kind{kill, fail, restart}
	count := 0
	for _, asks := range []bool{false, true} {
		for _, first := range []kind{kill, fail, cut, cancel, restart} {
			t.Run(fmt.Sprintf("%s, asks=%v", first, asks), func(t *testing.T) {
				for nth := range steps {
					// Alone, and followed by a second one at each of the steps after it, until there are no more.
					for then := -1; ; then++ {
						plan := []trouble{{first, nth}}
						if then >= 0 {
							plan = append(plan, trouble{seconds[then%len(seconds)], nth + 1 + then/len(seconds)})
						}
						left := 0
						synctest.Test(t, func(t *testing.T) {
							r := &run{world: newWorld(t), plan: plan, asks: asks}
							sent, err := r.play(t.Context())
							r.check(t, sent, err)
							r.asked.Wait()
							left = len(r.plan)
							for s := range r.seen {
								seen[s] = true
							}
						})
						count++
						if left > 0 {
							break
						}
					}
				}
			})
		}
	}
	t.Logf("%d migrations", count)
	for _, s := range slices.Concat(handover.Steps(journal.Source), handover.Steps(journal.Destination)) {
		elsewhere := strings.HasPrefix(s.Event, "force") // a person's word
		if !seen[s] && !elsewhere {
			t.Errorf("never at %s", s)
		}
	}
}
