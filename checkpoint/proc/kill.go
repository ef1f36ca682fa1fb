package proc

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// killTime bounds the wait for killed processes to leave their namespaces.
const killTime = 5 * time.Second

// KillNetNS kills every process in a network namespace, and returns when all have left it.
func (d Dir) KillNetNS(netns uint64) error {
	for deadline := time.Now().Add(killTime); time.Now().Before(deadline); {
		table, err := d.Table()
		if err != nil {
			return err
		}
		left := false
		for _, e := range table {
			if e.NetNS == netns {
				left = true
				unix.Kill(e.PID, unix.SIGKILL) //nolint:errcheck // gone
			}
		}
		if !left {
			return nil
		}
		time.Sleep(time.Millisecond) // they are nobody's children whose end could be awaited
	}
	return errors.New("processes do not end")
}
