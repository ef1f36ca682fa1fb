// Command nsmigrate moves a running service, with its network namespace and its established TCP
// connections, from one Linux host to another.
package main

import (
	"context"
	"io"
	"os"

	"github.com/nsmigrate/nsmigrate/restore/nsinit"
)

// version is set by the linker (see the Makefile).
var version = "unknown"

func main() {
	if len(os.Args) > 1 { // what restore leaves beside a service is this program too
		switch os.Args[1] {
		case nsinit.Arg:
			nsinit.Main()
		case nsinit.TerminalArg:
			nsinit.HoldTerminal()
		case guardArg:
			os.Exit(int(beGuard(os.Args[2:])))
		}
	}
	os.Exit(run(os.Args, os.Stdin, os.Stdout, os.Stderr))
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
