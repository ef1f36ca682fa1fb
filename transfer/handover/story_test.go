package handover_test

import (
	"testing"
	"testing/synctest"

	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

type result struct {
	report *handover.Report
	err    error
}

// migrate runs both sides to their end.
func (w *world) migrate(t *testing.T, o handover.Options) (source, destination result) {
	t.Helper()
	here, there := pipe(w, journal.Source)
	done := make(chan result)
	go func() {
		r, err := w.receive(t.Context(), there)
		done <- result{r, err}
	}()
	r, err := handover.Send(t.Context(), here, w.dirs[journal.Source], &fakeService{w}, o)
	return result{r, err}, <-done
}

func TestStory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s, d := w.migrate(t, w.options(journal.Source))
		if s.err != nil || d.err != nil {
			t.Fatal(s.err, d.err)
		}
		t.Log(w.told(journal.Source))
		t.Log(w.told(journal.Destination))
		t.Log(s.report, d.report)
	})
}
