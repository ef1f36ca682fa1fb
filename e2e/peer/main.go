// Peer is the e2e tests' own service and its clients. Both directions of every connection carry bytes that
// describe themselves, so either side notices a byte that is lost, doubled or changed.
//
//	peer serve ...   the service
//	peer load ...    connections to it, or to redis or a web server
//	peer ask ...     what the service knows of a connection, or of itself
package main

import (
	"fmt"
	"os"

	"github.com/nsmigrate/nsmigrate/e2e/peer/control"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("usage: peer serve|load|ask [FLAG...]")
	}
	switch name := args[0]; name {
	case "serve":
		return serve(args[1:])
	case workerName:
		return work(args[1:])
	case "load":
		worker, err := startLoad(args[1:])
		if err != nil {
			return err
		}
		return control.Serve(worker, os.Stdin, os.Stdout)
	case "ask":
		return ask(args[1:])
	default:
		return fmt.Errorf("unknown command %q", name)
	}
}
