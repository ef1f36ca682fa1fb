package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/restore"
	"github.com/nsmigrate/nsmigrate/transfer/handover"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
	"github.com/nsmigrate/nsmigrate/transfer/migrate"
	"github.com/nsmigrate/nsmigrate/transfer/stream"
	"github.com/nsmigrate/nsmigrate/transfer/transport"
)

func receiveCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "receive",
		Usage: "be the destination of one migration, over standard input and output",
		Description: description("What `nsmigrate migrate --to ssh://HOST` runs on the other host; nobody types it. With --to exec:COMMAND\n"+
			"any command can be the way to it.",
			[]string{"nsmigrate migrate --netns svc --to exec:'ssh -J jump root@new nsmigrate receive --stdio'"},
			statusRefused, statusRestoreFailed, statusLeftBehind, statusInterrupted),
		Flags: append(receiverFlags(),
			&cli.BoolFlag{Name: "stdio", Usage: "talk over standard input and output"}),
		Action: func(c *cli.Context) error {
			if !c.Bool("stdio") {
				return usagef("`nsmigrate migrate` runs it with --stdio; a daemon for many migrations is `nsmigrate serve`", "receive needs --stdio")
			}
			return u.receive(c.Context, stdio(), parseReceiver(c), nil)
		},
	}
}

// receiver is what a host wants of the migrations that it is the destination of.
type receiver struct {
	stateDir string
	criu     string
	onLive   string
	stream   stream.Options
}

func receiverFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "on-live", Usage: "run the shell `COMMAND` when the service is live, for routers and load balancers; NSMIGRATE_NETNS, NSMIGRATE_PID and NSMIGRATE_ID tell it which"},
		stateDirFlag(),
		criuFlag(),
	}
}

func parseReceiver(c *cli.Context) receiver {
	return receiver{stateDir: c.String("state-dir"), criu: c.String("criu"), onLive: c.String("on-live")}
}

// serveMigrations is what `nsmigrate serve` does with each connection.
func (u *ui) serveMigrations(c *cli.Context) (transport.Handler, error) {
	r := parseReceiver(c)
	return func(ctx context.Context, conn io.ReadWriteCloser, peer *transport.Peer) error {
		return u.receive(ctx, conn, r, peer.Admit)
	}, nil
}

// receive is the destination's side of one connection. admit, if it is not nil, is asked when a service is offered.
func (u *ui) receive(ctx context.Context, rw io.ReadWriteCloser, r receiver, admit func() error) error {
	o := r.stream
	o.Large = handover.LargeMessages()
	conn := stream.New(rw, o)
	if err := conn.Handshake(ctx); err != nil {
		return errors.Join(fmt.Errorf("receive: %w", err), conn.Close())
	}
	if err := checkpoint.RequireRoot("receive"); err != nil {
		return errors.Join(err, conn.Close())
	}
	d := &migrate.Destination{Options: restore.Options{CRIU: r.criu}, Guard: startGuard, OnLive: r.onLive, Admit: admit}
	defer d.Close()
	report, err := handover.Receive(ctx, handover.Over(conn), journal.Dir{Path: r.stateDir}, d, handover.Options{
		Reopen: func(_ context.Context, j *journal.Journal) (handover.Host, error) {
			return migrate.ReopenDestination(j)
		},
		At: faults(os.Getenv),
	})
	if err == nil && report.Leftover != nil {
		err = &leftBehindError{err: report.Leftover}
	}
	return err
}

// pipes is standard input and output as one connection.
type pipes struct{ in, out *os.File }

// stdio returns them with deadlines and endings that work, which the poller gives to descriptors that don't block.
func stdio() pipes {
	for _, fd := range []int{0, 1} {
		unix.SetNonblock(fd, true) //nolint:errcheck // a file or a terminal does without
	}
	return pipes{os.NewFile(0, "stdin"), os.NewFile(1, "stdout")}
}

func (p pipes) Read(b []byte) (int, error)  { return p.in.Read(b) }
func (p pipes) Write(b []byte) (int, error) { return p.out.Write(b) }
func (p pipes) CloseWrite() error           { return p.out.Close() }
func (p pipes) Close() error                { return errors.Join(ignoreClosed(p.out.Close()), p.in.Close()) }

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
