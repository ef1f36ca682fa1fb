package main

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nsmigrate/nsmigrate/transfer/transport"
)

// remoteFlags say where the other host is and how it is reached.
func remoteFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "to", Usage: "the other host's `ADDRESS`: ssh://[USER@]HOST[:PORT], tls://HOST[:PORT], unix:PATH or exec:COMMAND"},
		&cli.StringFlag{Name: "remote-path", Value: "nsmigrate", Usage: "with ssh: what to run over there, a `PATH` or also a command before it, such as 'sudo -n nsmigrate'"},
		&cli.BoolFlag{Name: "push-binary", Usage: "with ssh: bring a copy of this program, run that, and remove it afterwards"},
		&cli.StringSliceFlag{Name: "ssh-option", Usage: "with ssh: an `OPTION` as in ssh_config(5), such as ProxyJump=gate; can be repeated"},
	}, tlsFlags("the other host's")...)
}

// tlsFlags name the files of TLS.
func tlsFlags(whose string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "tls-ca", Usage: "with TLS: `FILE` with the CAs that " + whose + " certificate must come from (PEM)"},
		&cli.StringFlag{Name: "tls-cert", Usage: "with TLS: `FILE` with this host's certificate, and those between it and its CA (PEM)"},
		&cli.StringFlag{Name: "tls-key", Usage: "with TLS: `FILE` with its private key (PEM)"},
		&cli.StringFlag{Name: "tls-crl", Usage: "with TLS: `FILE` with the CAs' lists of revoked certificates (PEM or DER)"},
	}
}

// remote is what remoteFlags say.
type remote struct {
	address transport.Address
	opts    transport.Options
}

func parseRemote(c *cli.Context) (*remote, error) {
	if c.String("to") == "" {
		return nil, usagef("for example --to ssh://root@new", "where to is missing: give --to")
	}
	a, err := transport.Parse(c.String("to"))
	if err != nil {
		return nil, &usageError{err: err, hint: hintOf(err)}
	}
	for scheme, flags := range map[transport.Scheme][]string{
		transport.SSH: {"remote-path", "push-binary", "ssh-option"},
		transport.TLS: {"tls-ca", "tls-cert", "tls-key", "tls-crl"},
	} {
		for _, flag := range flags {
			if c.IsSet(flag) && a.Scheme != scheme {
				return nil, usagef("", "--%s is for %s:// addresses, not for %s", flag, scheme, a)
			}
		}
	}
	r := &remote{address: a}
	if strings.TrimSpace(c.String("remote-path")) == "" {
		return nil, usagef("leave it out for nsmigrate in the PATH over there", "--remote-path is empty")
	}
	r.opts.SSH = transport.SSHOptions{
		RemotePath: c.String("remote-path"), PushBinary: c.Bool("push-binary"), Interactive: hasTerminal(),
	}
	for _, option := range c.StringSlice("ssh-option") {
		if option == "" || strings.HasPrefix(option, "-") {
			return nil, usagef("write it as in ssh_config(5), such as --ssh-option ProxyJump=gate", "--ssh-option: %q is no option", option)
		}
		r.opts.SSH.Args = append(r.opts.SSH.Args, "-o", option)
	}
	r.opts.TLS, err = parseTLS(c)
	if a.Scheme == transport.TLS && (r.opts.TLS.Cert == "" || r.opts.TLS.Key == "") {
		return nil, usagef("the other host lets nobody in without one", "a certificate of this host is missing: give --tls-cert and --tls-key")
	}
	return r, err
}

// parseTLS returns the files with paths that are also right for who works elsewhere: what is left to recover may be
// recovered from another directory.
func parseTLS(c *cli.Context) (f transport.Files, err error) {
	for flag, file := range map[string]*string{"tls-ca": &f.CA, "tls-cert": &f.Cert, "tls-key": &f.Key, "tls-crl": &f.CRL} {
		switch {
		case c.String(flag) != "":
			if *file, err = filepath.Abs(c.String(flag)); err != nil {
				return f, err
			}
		case c.IsSet(flag):
			return f, usagef("give a file", "--%s is empty", flag)
		}
	}
	return f, nil
}

// hasTerminal says whether ssh can ask somebody.
func hasTerminal() bool {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// parseSize reads a number of bytes with one of the units k, M, G and T, which are powers of 1000. "" is 0.
func parseSize(text string) (int64, error) {
	const hint = "write a number of bytes such as 1500000, 100M or 2.5G"
	if text == "" {
		return 0, nil
	}
	number, unit := text, 1.0
	for i, suffix := range []string{"k", "M", "G", "T"} {
		if n := len(text) - 1; strings.EqualFold(text[n:], suffix) {
			number, unit = text[:n], math.Pow(1000, float64(i+1))
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !(n > 0) || n*unit < 1 || n*unit >= math.MaxInt64 || strings.ContainsAny(number, "xXeEpP_") {
		return 0, usagef(hint, "%q is no size", text)
	}
	return int64(n * unit), nil
}
