package main

import (
	"encoding/json"
	"flag"
	"io"
	"net"
	"os"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/peer/control"
)

// ask prints what the service knows of a connection, or the outcome of an exchange inside its tree.
func ask(args []string) error {
	set := flag.NewFlagSet("ask", flag.ContinueOnError)
	connect := set.String("connect", "", "address of the service")
	id := set.Uint64("id", 0, "connection to ask about; 0: ask for an exchange inside the tree")
	if err := set.Parse(args); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if *id == 0 {
		inner, err := askFor[control.Inner](*connect, "", hello{mode: modeInner, chunk: 1})
		if err != nil {
			return err
		}
		return out.Encode(inner)
	}
	k, err := query(*connect, "", *id)
	if err != nil {
		return err
	}
	return out.Encode(k)
}

func query(addr, local string, id uint64) (control.Knowledge, error) {
	return askFor[control.Knowledge](addr, local, hello{mode: modeQuery, id: id, chunk: 1})
}

// askFor makes a connection of its own for a question.
func askFor[T any](addr, local string, h hello) (answer T, err error) {
	var nc net.Conn
	if nc, err = dial(addr, local); err != nil {
		return answer, err
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err = nc.Write(h.bytes()); err == nil {
		err = json.NewDecoder(nc).Decode(&answer)
	}
	// Both ends' FINs are on the wire when this returns: whoever counts them can begin anew.
	if tcp, ok := nc.(*net.TCPConn); ok && err == nil {
		err = tcp.CloseWrite()
	}
	if err == nil {
		_, err = io.Copy(io.Discard, nc)
	}
	return answer, err
}
