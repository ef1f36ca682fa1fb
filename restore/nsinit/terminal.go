package nsinit

import (
	"io"
	"os"
	"os/signal"
	"syscall"
)

// TerminalArg is the first argument of a process that is to hold a terminal; main calls [HoldTerminal] when
// it sees it.
const TerminalArg = "nsterminal"

// HoldTerminal holds the master of a pseudo terminal, descriptor 3, and throws away what is written to it, until
// the last process that has the terminal open has closed it. It never returns.
func HoldTerminal() {
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	io.Copy(io.Discard, os.NewFile(fdControl, "master")) //nolint:errcheck // ends with EIO
	os.Exit(0)
}
