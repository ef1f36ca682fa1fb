package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"nsmigrate": main})
}

// TestScripts runs the program as its users do: see testdata. UPDATE=1 rewrites the expected outputs.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       os.Getenv("UPDATE") != "",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": statusCmd,
		},
		Setup: func(env *testscript.Env) error {
			image, err := filepath.Abs("testdata/svc.nsm")
			env.Setenv("IMAGE", image)
			return err
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Getuid() == 0, nil
			case "run-tmpfs": // which check demands
				var fs unix.Statfs_t
				err := unix.Statfs("/run", &fs)
				return err == nil && fs.Type == unix.TMPFS_MAGIC, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
	})
}

// statusCmd is the command `status N PROGRAM ARGS...`: the program must end with exit status N.
func statusCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N PROGRAM ARGS...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = exitText(err)
	}
	if got != args[0] {
		ts.Fatalf("exit status %s, want %s", got, args[0])
	}
}

func exitText(err error) string {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return strconv.Itoa(exit.ExitCode())
	}
	return err.Error()
}
