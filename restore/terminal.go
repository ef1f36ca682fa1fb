package restore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/restore/nsinit"
)

// terminal is the pseudo terminal that takes the place of one whose other end stayed on the source host.
// Somebody has to hold its master: without one the kernel hangs the service up.
type terminal struct {
	master, slave *os.File
}

func newTerminal() (*terminal, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t := &terminal{master: master}
	if err := t.openSlave(); err != nil {
		master.Close()
		return nil, fmt.Errorf("open pseudo terminal: %w", err)
	}
	return t, nil
}

func (t *terminal) openSlave() error {
	fd := int(t.master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return err
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return err
	}
	t.slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	return err
}

// attach joins the master to files of ours, either of which may be nil, for as long as the service has the
// terminal open.
func (t *terminal) attach(in, out *os.File) {
	if in != nil {
		go io.Copy(t.master, in) //nolint:errcheck // ends with either side
	}
	go func() {
		var to io.Writer = io.Discard
		if out != nil {
			to = out
		}
		io.Copy(to, t.master) //nolint:errcheck // ends with EIO when the service has closed its last descriptor
		t.master.Close()
	}()
}

// leave hands the master to a process of its own, which throws away what the service writes and ends when it
// has closed the terminal.
func (t *terminal) leave() error {
	cmd := exec.Command("/proc/self/exe", nsinit.TerminalArg)
	cmd.Dir = "/"
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.ExtraFiles = []*os.File{t.master}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("leave the service's terminal to a holder: %w", err)
	}
	return errors.Join(cmd.Process.Release(), t.master.Close())
}

func (t *terminal) close() {
	t.master.Close()
	t.slave.Close()
}
