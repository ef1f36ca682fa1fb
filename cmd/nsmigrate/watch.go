package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/restore"
)

// watchArg is the argument of a process that watches over a dump or a restore.
const watchArg = "nswatch"

// watched is what a watch has to know to take back or to complete what a process began that was killed. Each message
// takes the place of the one before.
type watched struct {
	Dump   *checkpoint.Record `json:"dump,omitempty"`
	Staged string             `json:"staged,omitempty"` // where the image is written
	Name   string             `json:"name,omitempty"`   // that it is to have
	Tail   []byte             `json:"tail,omitempty"`   // of an image on standard output that is held back
	Whole  bool               `json:"whole,omitempty"`  // the image is complete and durable: the service may be killed

	Restore *restore.Record                  `json:"restore,omitempty"`
	Uplinks map[string]netstate.UplinkTarget `json:"uplinks,omitempty"` // that were asked for
	Image   string                           `json:"image,omitempty"`   // directory

	Scratch string `json:"scratch,omitempty"` // temporary directory
	Done    bool   `json:"done,omitempty"`
}

// watch is the process, seen from the one that it watches. It learns of the death by the end of a pipe. A nil watch
// takes no notice of anything.
type watch struct {
	child *guard
	told  watched
}

// startWatch starts a watch that writes to the same standard streams as this process.
func startWatch(out, errOut io.Writer) (*watch, error) {
	child, err := startChild(fileOr(out), fileOr(errOut), watchArg)
	if err != nil {
		return nil, fmt.Errorf("start what puts things back should this process be killed: %w", err)
	}
	return &watch{child: child}, nil
}

func fileOr(w io.Writer) *os.File {
	f, _ := w.(*os.File)
	return f
}

// tell changes what the watch knows.
func (w *watch) tell(change func(*watched)) error {
	if w == nil {
		return nil
	}
	change(&w.told)
	b, err := json.Marshal(&w.told)
	if err != nil {
		return err
	}
	if _, err := w.child.life.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("tell the process that watches over this one: %w", err)
	}
	return nil
}

// scratch makes a temporary directory.
func (w *watch) scratch() (string, error) {
	path, err := checkpoint.Scratch("")
	if err != nil {
		return "", err
	}
	if err := w.tell(func(t *watched) { t.Scratch = path }); err != nil {
		return "", errors.Join(err, os.RemoveAll(path))
	}
	return path, nil
}

// done dismisses the watch.
func (w *watch) done() {
	w.tell(func(t *watched) { *t = watched{Done: true} }) //nolint:errcheck // then it is dead, which is what is wanted
	w.child.end()
}

// beWatch is the watch's life. It returns the exit status.
func beWatch() status {
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE)
	var last watched
	for messages := json.NewDecoder(os.Stdin); ; {
		var w watched
		if messages.Decode(&w) != nil {
			break // a message that was cut short tells of nothing that has begun
		}
		last = w
	}
	if last.Done {
		return statusOK
	}
	u := newUI(nil, os.Stdout, os.Stderr)
	ctx, cancel := context.WithTimeout(context.Background(), guardTime)
	defer cancel()
	var did string
	var err error
	switch {
	case last.Dump != nil:
		did, err = last.endDump(ctx)
	case last.Restore != nil:
		did, err = last.endRestore(ctx)
	}
	if last.Scratch != "" {
		err = errors.Join(err, os.RemoveAll(last.Scratch))
	}
	if err != nil {
		u.say("nsmigrate was killed, and not everything could be put right: %v", err)
		return statusError
	}
	if did != "" {
		u.say("nsmigrate was killed: %s", did)
	}
	return statusOK
}

// endDump puts the source back, or ends it if its end has begun.
func (w *watched) endDump(ctx context.Context) (string, error) {
	ended, err := w.Dump.Ended(ctx)
	if err != nil {
		return "", err
	}
	if !ended || !w.Whole {
		return "the source is running as before", errors.Join(w.Dump.Resume(ctx), w.discard())
	}
	where := w.Name
	if w.Staged != "" {
		if _, err := os.Stat(w.Staged); err == nil {
			if err := place(w.Staged, w.Name); err != nil {
				return "", err
			}
		}
	} else {
		where = "standard output"
		if _, err := os.Stdout.Write(w.Tail); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("the image %s is complete, the source is removed", where), w.Dump.End(ctx)
}

// discard removes an image that is not to be.
func (w *watched) discard() error {
	if w.Staged == "" {
		return nil
	}
	unfinished, err := filepath.Glob(filepath.Join(filepath.Dir(w.Staged), "."+filepath.Base(w.Staged)+".*.tmp"))
	for _, path := range append(unfinished, w.Staged) {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// endRestore takes the restore back, or completes it if the service may have been heard.
func (w *watched) endRestore(ctx context.Context) (string, error) {
	if !w.Restore.Live {
		return "nothing is left of the restore on this host, the image is intact", w.Restore.Undo(ctx)
	}
	state, err := restore.ReadState(w.Image)
	if err != nil {
		return "", err
	}
	return "the service is live", w.Restore.GoLive(ctx, state, w.Uplinks)
}
