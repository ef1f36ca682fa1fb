package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"

	"github.com/nsmigrate/nsmigrate/transfer/transport"
)

// serveCommand is the daemon. What is done with a connection is the business of a handler, which is made of the
// command's own flags.
func serveCommand(
	u *ui, s *signals, flags []cli.Flag, handler func(*cli.Context) (transport.Handler, error),
) *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "wait for services that migrate to this host",
		Description: description(`Waits for other hosts that migrate services to this one with --to tls://HOST[:PORT], until it is told to
end; what is arriving then may finish. Both sides show certificates (TLS 1.3). Who may come is on a list:
names of certificates (DNS names, URIs or common names), where * is any that the CA knows, and
*.nodes.example any with one label more. SIGHUP has the certificates and lists read again.

Sockets that systemd passes are used before any that --listen names. The program's source has unit files
(transfer/transport/systemd). On a unix socket (--listen unix:PATH) root of this host may come without a
certificate.`,
			[]string{
				"sudo nsmigrate serve --tls-ca ca.pem --tls-cert host.pem --tls-key host.key --allow old.example",
				"sudo nsmigrate serve --listen unix:/run/nsmigrate.sock",
				"sudo nsmigrate serve --listen 10.0.0.2:8747 --tls-ca ca.pem --tls-cert host.pem --tls-key host.key \\",
				"    --tls-crl revoked.pem --allow-file /etc/nsmigrate/allow --max-migrations 8 --bandwidth 500M",
			}),
		Flags: append(serveFlags(), flags...),
		Action: func(c *cli.Context) error {
			r, err := parseServe(c)
			if err != nil {
				return err
			}
			if r.opts.Handler, err = handler(c); err != nil {
				return err
			}
			return u.serve(c.Context, r, s)
		},
	}
}

func serveFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringSliceFlag{Name: "listen", Usage: fmt.Sprintf("listen on `ADDRESS`: HOST:PORT, :PORT or unix:PATH; can be repeated (default: :%d, or what systemd passes)", transport.DefaultPort)},
		&cli.StringSliceFlag{Name: "allow", Usage: "let who is called `NAME` come; can be repeated"},
		&cli.StringFlag{Name: "allow-file", Usage: "let those come whose names are in `FILE`, one a line"},
		&cli.IntFlag{Name: "max-migrations", Value: 4, Usage: "take in `N` services at the same time"},
		&cli.IntFlag{Name: "max-connections", Value: 128, Usage: "serve `N` connections at the same time"},
		&cli.IntFlag{Name: "max-per-peer", Value: 8, Usage: "serve `N` connections of one name at the same time"},
		&cli.StringFlag{Name: "max-size", Usage: "take in `SIZE` bytes of one service, such as 64G"},
		&cli.StringFlag{Name: "bandwidth", Usage: "take in `RATE` bytes a second of all together, such as 500M"},
		&cli.DurationFlag{Name: "handshake-timeout", Value: 10 * time.Second, Usage: "send away who has not shown a certificate within `TIME`"},
		&cli.DurationFlag{Name: "grace", DefaultText: "as long as it takes", Usage: "when told to end, give what is arriving `TIME`"},
	}, tlsFlags("other hosts'")...)
}

// serveRequest is what the flags of serve ask for.
type serveRequest struct {
	listen []string
	opts   transport.ServerOptions
}

func parseServe(c *cli.Context) (*serveRequest, error) {
	r := &serveRequest{listen: c.StringSlice("listen")}
	if len(r.listen) == 0 {
		r.listen = []string{fmt.Sprintf(":%d", transport.DefaultPort)}
	}
	l := transport.Limits{
		Migrations: c.Int("max-migrations"), Connections: c.Int("max-connections"), PerPeer: c.Int("max-per-peer"),
		Handshake: c.Duration("handshake-timeout"), Grace: c.Duration("grace"),
	}
	for flag, ok := range map[string]bool{
		"max-migrations": l.Migrations > 0, "max-connections": l.Connections > 0, "max-per-peer": l.PerPeer > 0,
		"handshake-timeout": l.Handshake > 0, "grace": l.Grace >= 0,
	} {
		if !ok {
			return nil, usagef("", "--%s: %v is too little", flag, c.Value(flag))
		}
	}
	var err error
	if l.Size, err = parseSize(c.String("max-size")); err != nil {
		return nil, fmt.Errorf("--max-size: %w", err)
	}
	if l.Bandwidth, err = parseSize(c.String("bandwidth")); err != nil {
		return nil, fmt.Errorf("--bandwidth: %w", err)
	}
	r.opts = transport.ServerOptions{Allow: c.StringSlice("allow"), AllowFile: c.String("allow-file"), Limits: l}
	r.opts.TLS, err = parseTLS(c)
	return r, err
}

func (u *ui) serve(ctx context.Context, r *serveRequest, s *signals) error {
	log := u.logger()
	r.opts.Log = log
	server, err := transport.NewServer(r.opts)
	if err != nil {
		return err
	}
	listeners, err := transport.Listen(ctx, r.listen)
	if err != nil {
		return err
	}
	notify := func(state string) {
		if _, err := daemon.SdNotify(false, state); err != nil {
			log.Warn("can't tell systemd", "error", err)
		}
	}
	s.onHangup(func() {
		if err := server.Reload(); err != nil {
			log.Error("what was to be read again is not used", "error", err, "hint", cmp.Or(hintOf(err), "all is as it was"))
			return
		}
		log.Info("certificates and lists were read again")
	})
	stop := context.AfterFunc(ctx, func() { notify(daemon.SdNotifyStopping) })
	defer stop()
	notify(daemon.SdNotifyReady)
	return server.Serve(ctx, listeners...)
}

// logger is for daemons: what happens is a line on standard error, of JSON if --format asks for that.
func (u *ui) logger() *slog.Logger {
	if u.json {
		return slog.New(slog.NewJSONHandler(u.err, nil))
	}
	return slog.New(slog.NewTextHandler(u.err, nil))
}
