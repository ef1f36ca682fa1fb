// Command nsmigrate moves a running service, with its network namespace and its established TCP
// connections, from one Linux host to another.
package main

import (
	"context"
	"io"
	"os"
	"runtime"

	"github.com/nsmigrate/nsmigrate/restore/nsinit"
)

// version is set by the linker (see the Makefile).
var version = "unknown"

// The first thread of a process lives as long as the process, and is what others take for it: whatever entered a namespace
// on it would show the process there, for good if it was to end with its goroutine. So nothing runs on it.
func init() { runtime.LockOSThread() }

func main() {
	if len(os.Args) > 1 { // what restore leaves beside a service is this program too
		switch os.Args[1] {
		case nsinit.Arg:
			nsinit.Main()
		case nsinit.TerminalArg:
			nsinit.HoldTerminal()
		case guardArg:
			elsewhere(func() int { return int(beGuard(os.Args[2:])) })
		}
	}
	elsewhere(func() int { return run(os.Args, os.Stdin, os.Stdout, os.Stderr) })
}

// elsewhere runs fn on other threads than the first, and ends with the status that it returns.
func elsewhere(fn func() int) {
	status := make(chan int)
	go func() { status <- fn() }()
	os.Exit(<-status)
}

// run is main with its surroundings as arguments. It returns the exit status.
func run(args []string, in io.Reader, out, errOut io.Writer) int {
	u := newUI(in, out, errOut)
	u.json = asksForJSON(args) // until the flags are parsed
	ctx, signals := catchSignals(context.Background(), u)
	defer signals.stop()
	err := newApp(u, signals).RunContext(ctx, args)
	return u.fail(signals.explain(err))
}
