package blackout

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/bench/openloop"
)

// The benchmark calls itself as its client, and under test that is this.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "-"+ClientFlag {
		var o openloop.Options
		err := json.Unmarshal([]byte(os.Args[2]), &o)
		if err == nil {
			err = openloop.Run(o, os.Stdin, os.Stdout)
		}
		if err != nil {
			os.Stderr.WriteString(err.Error())
		}
		return
	}
	m.Run()
}

// The benchmark works: a service moves, its connections survive, and the phases are told.
func TestMeasure(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("hosts of namespaces need root")
		}
		t.Skip("hosts of namespaces need root")
	}
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "nsmigrate"), "github.com/nsmigrate/nsmigrate/cmd/nsmigrate")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	const runs, moves = 2, 6 // there and back, and all services of the tail
	got, err := Measure(ctx, Options{
		Only: regexp.MustCompile("^10 connections$|^tail$"), Movers: regexp.MustCompile("^(" + reference + "|" + alone + ")$"), Rounds: runs,
		Tail: moves, Progress: func(string, ...any) {}, Done: func(string, time.Duration) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Cells) != 2 {
		t.Fatalf("%d movers were measured: %+v", len(got.Cells), got)
	}
	if late, lost := got.Tail.impatient(); len(got.Tail.Moves) != moves || lost > 0 || got.Tail.RST > 0 {
		t.Errorf("in the tail, %d moves, %d connections lost, %d RST; %v", len(got.Tail.Moves), lost, got.Tail.RST, got.Tail.Failures)
	} else {
		t.Logf("in the tail, %d of %d clients waited longer: %v", late, len(got.Tail.gaps()), got.Tail.beyond())
	}
	for _, c := range got.Cells {
		if c.Mover != reference { // what others do to their connections is for the table to tell
			t.Logf("%s: %d runs; %v", c.Mover, len(c.Runs), c.Failures)
			continue
		}
		if len(c.Runs) != runs {
			t.Errorf("%s: %d runs; %v", c.Mover, len(c.Runs), c.Failures)
		}
		for _, r := range c.Runs {
			if r.Answers == 0 || r.blackout() == 0 || r.CRIU.Frozen == 0 || r.Bytes == 0 {
				t.Errorf("%s: %+v", c.Mover, r)
			}
			if r.Alive != 10 || r.RST != 0 {
				t.Errorf("%s: connections were lost: %+v", c.Mover, r)
			}
		}
	}
}
