package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/restore/nsinit"
)

// forwarded are the signals that a service in the foreground gets when nsmigrate gets them.
var forwarded = [...]os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH}

// Wait stays with the service until all its trees have ended, hands signals on to their roots, and returns
// the exit code of the first tree's root, 128 and the signal's number if it was killed. It serves a restore
// with the option Wait.
func (r *Report) Wait(ctx context.Context) (int, error) {
	signals := make(chan os.Signal, len(forwarded))
	signal.Notify(signals, forwarded[:]...)
	defer signal.Stop(signals)

	type end struct {
		tree, code int
		err        error
	}
	ends := make(chan end, len(r.waiters))
	for i, wait := range r.waiters {
		go func() {
			code, err := wait()
			ends <- end{i, code, err}
		}()
	}
	code := 0
	var errs []error
	for left := len(r.waiters); left > 0; {
		select {
		case <-ctx.Done():
			return code, ctx.Err()
		case s := <-signals:
			for _, pid := range r.PIDs {
				unix.Kill(pid, s.(unix.Signal))
			}
		case e := <-ends:
			left--
			errs = append(errs, e.err)
			if e.tree == 0 {
				code = e.code
			}
		}
	}
	return code, errors.Join(errs...)
}

// waiter returns the function that waits for the tree's end.
func (t *tree) waiter(pid int) func() (int, error) {
	if t.init != nil {
		return t.init.Wait
	}
	return func() (int, error) {
		for {
			var status unix.WaitStatus
			_, err := unix.Wait4(pid, &status, 0, nil)
			switch {
			case errors.Is(err, unix.EINTR):
			case err != nil:
				return 0, fmt.Errorf("wait for process %d: %w", pid, err)
			default:
				return nsinit.ExitCode(status), nil
			}
		}
	}
}
