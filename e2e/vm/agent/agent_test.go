package agent_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/vm/agent"
)

func connect(t *testing.T) *agent.Client {
	guest, host := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- agent.Serve(guest) }()
	c := agent.NewClient(host)
	t.Cleanup(func() {
		host.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCommands(t *testing.T) {
	c := connect(t)
	var exit *agent.ExitError
	for _, test := range []struct {
		script, output string
		code           int
	}{
		{"echo out; echo err >&2", "out\nerr\n", 0},
		{"echo $WORD; pwd; exit 7", "w\n/tmp\n", 7},
		{"kill -9 $$", "", -1},
		{"sleep 100 & echo left", "left\n", 0},
	} {
		var out strings.Builder
		err := c.Run(t.Context(), agent.Command{Args: []string{"sh", "-c", test.script}, Env: []string{"WORD=w"}, Dir: "/tmp", Output: &out})
		code := 0
		if errors.As(err, &exit) {
			code = exit.Code
		} else if err != nil {
			t.Errorf("%s: %v", test.script, err)
		}
		if out.String() != test.output || code != test.code {
			t.Errorf("%s: %q and code %d", test.script, out.String(), code)
		}
	}
	if err := c.Run(t.Context(), agent.Command{Args: []string{"/no/such/program"}}); err == nil || errors.As(err, &exit) {
		t.Errorf("a missing program: %v", err)
	}
}

func TestSideBySide(t *testing.T) {
	c := connect(t)
	var commands sync.WaitGroup
	for range 8 {
		commands.Go(func() {
			var out strings.Builder
			if err := c.Run(t.Context(), agent.Command{Args: []string{"seq", "20000"}, Output: &out}); err != nil || out.Len() != 108894 {
				t.Errorf("%d bytes: %v", out.Len(), err)
			}
		})
	}
	commands.Wait()
}

func TestKill(t *testing.T) {
	c := connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	err := c.Run(ctx, agent.Command{Args: []string{"sh", "-c", "sleep 60; :"}})
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, agent.ErrGone) || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

func TestGuestGone(t *testing.T) {
	guest, host := net.Pipe()
	c := agent.NewClient(host)
	guest.Close()
	if err := c.Ready(t.Context()); !errors.Is(err, agent.ErrGone) {
		t.Error(err)
	}
	if err := c.Run(t.Context(), agent.Command{Args: []string{"true"}}); !errors.Is(err, agent.ErrGone) {
		t.Error(err)
	}
}
