package transport

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

// Files of a side's TLS.
type Files struct {
	CA   string `json:"ca,omitempty"`   // certificates, PEM, that the other side's certificate must come from. Empty: those of the system
	Cert string `json:"cert,omitempty"` // our certificate and those between it and the CA, PEM
	Key  string `json:"key,omitempty"`  // its private key, PEM
	CRL  string `json:"crl,omitempty"`  // lists of revoked certificates, PEM or DER; empty: none is revoked
}

// credentials are what the files hold.
type credentials struct {
	roots   *x509.CertPool
	cert    tls.Certificate
	revoked *revocations
}

// load reads the files and checks what can be checked before anybody is spoken to.
func (f Files) load(now time.Time) (*credentials, error) {
	if f.Cert == "" || f.Key == "" {
		return nil, &hintedError{
			err:  errors.New("a certificate of our own and its key are needed"),
			hint: "give --tls-cert and --tls-key; the other side lets nobody in without one",
		}
	}
	c := new(credentials)
	var err error
	if c.cert, err = tls.LoadX509KeyPair(f.Cert, f.Key); err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", f.Cert, f.Key, err)
	}
	if leaf := c.cert.Leaf; now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		return nil, &CertificateError{
			Whose: ours, Name: nameOf(leaf), Problem: outOfTime(leaf, now),
			Hint: "renew " + f.Cert, Err: x509.CertificateInvalidError{Cert: leaf, Reason: x509.Expired},
		}
	}
	if f.CA != "" {
		text, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, fmt.Errorf("certificates of the CA: %w", err)
		}
		c.roots = x509.NewCertPool()
		if !c.roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("certificates of the CA: there is none in %s", f.CA)
		}
	}
	if f.CRL != "" {
		if c.revoked, err = loadRevocations(f.CRL); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// config that both sides have in common.
func (c *credentials) config() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{c.cert},
		SessionTicketsDisabled: true, // a resumed session would pass by a list that has changed
	}
}

func dialTLS(ctx context.Context, a Address, f Files) (io.ReadWriteCloser, error) {
	c, err := f.load(time.Now())
	if err != nil {
		return nil, err
	}
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", a.hostPort())
	if err != nil {
		return nil, &hintedError{err: err, hint: "see whether `nsmigrate serve` runs there, the address and the port are right, and no firewall stands between"}
	}
	config := c.config()
	config.RootCAs = c.roots
	config.ServerName = a.Host
	// Also one that does not come from a CA that the server names, which would else be kept back: the server shall say
	// what is wrong with it.
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c.cert, nil }
	config.VerifyConnection = c.checkRevoked
	conn := client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	conn.gather()
	return conn, nil
}

// checkRevoked is for [tls.Config.VerifyConnection].
func (c *credentials) checkRevoked(s tls.ConnectionState) error {
	err := c.revoked.check(s.VerifiedChains, time.Now())
	if err == nil {
		return nil
	}
	e := &CertificateError{Whose: theirs, Name: nameOf(s.PeerCertificates[0]), Problem: err.Error(), Err: err}
	if revoked, ok := errors.AsType[*RevokedError](err); ok {
		e.Hint = revoked.Remedy()
	}
	return e
}

// Whose certificate.
const (
	ours   = "this side's certificate"
	theirs = "the other side's certificate"
)

// CertificateError says what is wrong with whose certificate.
type CertificateError struct {
	Whose   string // "this side's certificate" or "the other side's certificate"
	Name    string // whom it names; may be empty
	Problem string // what is wrong with it
	Hint    string
	Err     error
}

func (e *CertificateError) Error() string {
	name := ""
	if e.Name != "" {
		name = " (" + e.Name + ")"
	}
	return e.Whose + name + " " + e.Problem
}

func (e *CertificateError) Unwrap() error { return e.Err }

// Remedy says what the user can do.
func (e *CertificateError) Remedy() string { return e.Hint }

// namesOf returns whom a certificate names: DNS names, URIs, addresses and the common name.
func namesOf(c *x509.Certificate) []string {
	names := slices.Clone(c.DNSNames)
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if cn := c.Subject.CommonName; cn != "" && !slices.Contains(names, cn) {
		names = append(names, cn)
	}
	return names
}

// nameOf is for people.
func nameOf(c *x509.Certificate) string { return printable(strings.Join(namesOf(c), ", ")) }

func outOfTime(c *x509.Certificate, now time.Time) string {
	if now.Before(c.NotBefore) {
		return "is not valid before " + c.NotBefore.UTC().Format(time.RFC3339) + "; it is " + now.UTC().Format(time.RFC3339) + " now"
	}
	return "expired on " + c.NotAfter.UTC().Format(time.RFC3339)
}

// explainTLS turns an error of a handshake into one for people. Others it returns as they are.
func explainTLS(err error, f Files) error {
	if invalid, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return explainCertificate(invalid, f)
	}
	if record, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return &hintedError{
			err:  fmt.Errorf("the other side does not speak TLS: %w", record),
			hint: "see whether the port is that of `nsmigrate serve`",
		}
	}
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		if err != nil && strings.Contains(err.Error(), "unsupported protocol version") {
			return oldTLS(err)
		}
		return err
	}
	// crypto/tls doesn't export its alerts (RFC 8446, section 6.2): their texts have to tell.
	problem, hint := "", ""
	switch strings.TrimPrefix(op.Err.Error(), "tls: ") {
	case "unknown certificate authority":
		problem = "is not from a CA that the other side trusts"
		hint = "--tls-cert must come from the CA of --tls-ca over there"
	case "expired certificate":
		problem, hint = "has expired, says the other side", "renew "+f.Cert+", or see whether the clocks agree"
	case "revoked certificate":
		problem, hint = "was revoked, says the other side", "get another one"
	case "certificate required":
		problem, hint = "is missing", "give --tls-cert and --tls-key"
	case "bad certificate", "unsupported certificate", "unknown certificate":
		problem = "is not accepted by the other side"
		hint = "it must allow the authentication of clients (extended key usage); the log over there says more"
	case "protocol version not supported":
		return oldTLS(err)
	default:
		return err
	}
	return &CertificateError{Whose: ours, Name: f.Cert, Problem: problem, Hint: hint, Err: err}
}

func oldTLS(err error) error {
	return &hintedError{
		err:  fmt.Errorf("the other side does not speak TLS 1.3: %w", err),
		hint: "see whether the port is that of `nsmigrate serve`, and no proxy stands between",
	}
}

// explainCertificate says why we don't accept the other side's certificate.
func explainCertificate(err *tls.CertificateVerificationError, f Files) *CertificateError {
	e := &CertificateError{Whose: theirs, Problem: "is not valid: " + err.Err.Error(), Err: err}
	if len(err.UnverifiedCertificates) > 0 {
		e.Name = nameOf(err.UnverifiedCertificates[0])
	}
	var (
		unknown *x509.UnknownAuthorityError
		host    x509.HostnameError
		invalid x509.CertificateInvalidError
	)
	if authority, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		unknown = &authority
	}
	switch {
	case unknown != nil:
		e.Problem = "is not from a CA that is trusted here"
		if unknown.Cert != nil {
			e.Problem += ": it is from " + printable(cmp.Or(unknown.Cert.Issuer.String(), "nobody"))
		}
		e.Hint = "give the certificate of the CA that it comes from with --tls-ca"
		if f.CA != "" {
			e.Hint = "see whether " + f.CA + " holds the CA that it comes from, and whether this is the right host"
		}
	case errors.As(err, &host):
		e.Problem = fmt.Sprintf("is not for %q", host.Host)
		e.Hint = "call the host by a name that its certificate has, or give it a certificate with that name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		e.Problem, e.Hint = outOfTime(invalid.Cert, time.Now()), "renew it over there, or see whether the clocks agree"
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		e.Problem = "is not meant for this (extended key usage)"
		e.Hint = "a server's must allow the authentication of servers, a client's that of clients"
	}
	return e
}

// revocations are lists of revoked certificates.
type revocations struct {
	file  string
	lists []*x509.RevocationList
}

// RevokedError says that a certificate must not be accepted although it is otherwise valid.
type RevokedError struct {
	Problem string
	Hint    string
}

func (e *RevokedError) Error() string { return e.Problem }

// Remedy says what the user can do.
func (e *RevokedError) Remedy() string { return e.Hint }

func loadRevocations(file string) (*revocations, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("revoked certificates: %w", err)
	}
	r := &revocations{file: file}
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "X509 CRL" {
			continue
		}
		if err := r.add(block.Bytes); err != nil {
			return nil, err
		}
	}
	if r.lists == nil {
		if err := r.add(text); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *revocations) add(der []byte) error {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return fmt.Errorf("revoked certificates: %s: %w", r.file, err)
	}
	r.lists = append(r.lists, list)
	return nil
}

// check accepts a certificate if one of its chains has no revoked certificate. The CA of the first must have a list
// that is in force: a list that is missing or old would let in who was locked out. A nil receiver revokes nothing.
func (r *revocations) check(chains [][]*x509.Certificate, now time.Time) error {
	if r == nil {
		return nil
	}
	err := error(&RevokedError{Problem: "has no chain of certificates to its CA"})
	for _, chain := range chains {
		if err = r.checkChain(chain, now); err == nil {
			return nil
		}
	}
	return err
}

func (r *revocations) checkChain(chain []*x509.Certificate, now time.Time) error {
	for i, cert := range chain[:max(len(chain)-1, 0)] {
		listed := false
		for _, list := range r.lists {
			if list.CheckSignatureFrom(chain[i+1]) != nil {
				continue
			}
			for _, entry := range list.RevokedCertificateEntries {
				if entry.SerialNumber.Cmp(cert.SerialNumber) == 0 {
					return &RevokedError{
						Problem: "was revoked on " + entry.RevocationTime.UTC().Format(time.RFC3339),
						Hint:    "get another one from the CA",
					}
				}
			}
			listed = listed || now.Before(list.NextUpdate)
		}
		if !listed && i == 0 {
			return &RevokedError{
				Problem: "can't be told from revoked ones: " + r.file + " has no list of its CA that is in force",
				Hint:    "get the CA's newest list (CRL)",
			}
		}
	}
	return nil
}
