// Demo builds two hosts and a client out of namespaces, starts a redis on one of the hosts, and moves it to the
// other one while the client keeps writing and checking over one TCP connection.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
	"github.com/nsmigrate/nsmigrate/e2e/peer/control"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("hosts made of namespaces need root: run it with sudo")
	}
	l, err := lab.New(ctx, lab.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	d := &demo{Lab: l, svc: lab.Service()}
	if err := d.programs(ctx); err != nil {
		return err
	}
	if err := d.start(ctx); err != nil {
		return err
	}
	if err := d.move(ctx); err != nil {
		return err
	}
	return d.verdict(ctx)
}

// demo is the stage: hosts, programs, and the client's connection.
type demo struct {
	*lab.Lab
	svc       lab.NetNS
	nsmigrate string
	peer      string

	client *control.Client
	wire   *lab.Wire
}

// programs puts nsmigrate and the client where the hosts, whose /tmp is their own, can see them.
func (d *demo) programs(ctx context.Context) error {
	installed, err := exec.LookPath("nsmigrate")
	if err != nil {
		return fmt.Errorf("%w (make demo builds it)", err)
	}
	d.nsmigrate = filepath.Join(d.Dir, "nsmigrate")
	if err := copyFile(installed, d.nsmigrate); err != nil {
		return err
	}
	d.peer = filepath.Join(d.Dir, "peer")
	build := exec.CommandContext(ctx, "go", "build", "-o", d.peer, "github.com/nsmigrate/nsmigrate/e2e/peer")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the client: %w\n%s", err, out)
	}
	return nil
}

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func (d *demo) start(ctx context.Context) error {
	say("Two hosts, a client and a switch between them, all made of namespaces:")
	say("")
	say("    client %s        host-a %s        host-b %s", lab.ClientIPv4, d.A.IPv4, d.B.IPv4)
	say("           └───────────── switch ──┴───────────────────────┘")
	say("")
	if err := d.A.AddNetNS(ctx, d.svc); err != nil {
		return err
	}
	err := d.A.Script(ctx, fmt.Sprintf(
		"setsid --fork ip netns exec %s redis-server --bind %s --protected-mode no --save '' --dir %s </dev/null >/dev/null 2>&1",
		d.svc.Name, d.svc.IPv4, d.Dir))
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, d.peer, "load", "--mode", "redis", "--period", "1ms", "--connect", d.svc.Addr("4", 6379))
	cmd.Stderr = os.Stderr
	if d.client, err = control.Attach(cmd); err != nil {
		return err
	}
	if _, err := d.Client.Start(cmd); err != nil {
		return err
	}
	if _, err := d.client.Ready(ctx); err != nil {
		return err
	}
	// Until redis listened, the client's attempts were refused with a RST each.
	if d.wire, err = d.Client.Watch("eth0"); err != nil {
		return err
	}
	say("host-a runs redis in the network namespace %q at %s.", d.svc.Name, d.svc.IPv4)
	say("The client writes keys and reads others back, over one connection, all the time.")
	time.Sleep(time.Second) // some keys to carry
	before, err := d.progress(ctx)
	if err != nil {
		return err
	}
	say("So far: %d exchanges, the slowest took %.1f ms.", before.Exchanges, before.LongestGap)
	say("")
	return nil
}

func (d *demo) move(ctx context.Context) error {
	options, err := d.B.SSHD(ctx)
	if err != nil {
		return fmt.Errorf("start sshd on host-b: %w", err)
	}
	args := []string{"migrate", "--netns", d.svc.Name, "--to", "ssh://root@" + d.B.IPv4, "--print-stats", "--remote-path", d.nsmigrate}
	for _, o := range options {
		args = append(args, "--ssh-option", o)
	}
	if err := d.step(ctx, d.A, 6, args...); err != nil {
		return err
	}
	if _, err := d.progress(ctx); err != nil {
		return fmt.Errorf("the connection did not survive: %w", err)
	}
	say("")
	return nil
}

// step runs the program on a host and shows it, with the first of its arguments: the others are about where the demo has
// its keys and programs.
func (d *demo) step(ctx context.Context, h *lab.Host, shown int, args ...string) error {
	say("%s # nsmigrate %s", h.Name, strings.Join(args[:shown], " "))
	r, err := h.Run(ctx, append([]string{d.nsmigrate}, args...)...)
	if err != nil {
		return err
	}
	for line := range strings.Lines(r.Output()) {
		fmt.Print("    ", line)
	}
	if r.Code != 0 {
		return fmt.Errorf("nsmigrate %s: exit code %d", args[0], r.Code)
	}
	return nil
}

func (d *demo) progress(ctx context.Context) (control.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := d.client.Order(ctx, control.Progress)
	return r, errors.Join(err, r.Err())
}

// verdict says what the client saw.
func (d *demo) verdict(ctx context.Context) error {
	closings, err := d.wire.Closings()
	if err != nil {
		return err
	}
	time.Sleep(time.Second) // a look at how it goes on
	r, err := d.client.Order(ctx, control.Stop)
	if err := errors.Join(err, r.Err()); err != nil {
		return fmt.Errorf("the connection did not survive: %w", err)
	}
	left, err := d.A.Output(ctx, "ip", "netns", "list")
	if err != nil {
		return err
	}
	if left != "" || len(d.A.Processes()) > 0 {
		return fmt.Errorf("host-a still has the namespace %q and %d processes", left, len(d.A.Processes()))
	}
	resets, fins := 0, 0
	for _, c := range closings {
		if c.RST {
			resets++
		} else {
			fins++
		}
	}
	say("redis runs on host-b, and host-a has nothing of it any more. What the client saw:")
	say("")
	say("    the same connection    %d exchanges without an error", r.Exchanges)
	say("    the longest wait       %.0f ms, the move included", r.LongestGap)
	say("    bytes checked          %d received, all of them right", r.Received)
	say("    keys read back         %d at the end, all with the value written last", r.Keys)
	say("    resets and FINs        %d and %d on the wire", resets, fins)
	if resets+fins > 0 {
		return fmt.Errorf("segments that end connections were sent: %v", closings)
	}
	say("")
	say("The connection survived.")
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
