package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// authority is a CA whose files all hosts see.
type authority struct {
	w    *world
	name string
	last int64 // serial number
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func (w *world) authority(name string) *authority {
	w.Helper()
	a := &authority{w: w, name: name, last: 1}
	var err error
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.check(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.last), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	w.check(err)
	a.cert, err = x509.ParseCertificate(der)
	w.check(err)
	a.write("ca", "CERTIFICATE", der)
	return a
}

// path is where a file of the authority is.
func (a *authority) path(name string) string { return filepath.Join(a.w.Dir, a.name+"-"+name) }

func (a *authority) write(name, kind string, der []byte) {
	a.w.Helper()
	a.w.check(os.WriteFile(a.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

// issue makes a certificate for a name and an address, with changes, and returns the flags that use it.
func (a *authority) issue(name, ip string, change ...func(*x509.Certificate)) (flags []string) {
	a.w.Helper()
	a.last++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.last), Subject: pkix.Name{CommonName: name},
		DNSNames: []string{name}, IPAddresses: []net.IP{net.ParseIP(ip)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, f := range change {
		f(template)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.w.check(err)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	a.w.check(err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	a.w.check(err)
	serial := strconv.FormatInt(a.last, 10)
	a.write(serial+".pem", "CERTIFICATE", der)
	a.write(serial+".key", "PRIVATE KEY", secret)
	return []string{"--tls-ca", a.path("ca"), "--tls-cert", a.path(serial + ".pem"), "--tls-key", a.path(serial + ".key")}
}

// revoke writes the list of revoked certificates: of the one that was issued last, or of none. It returns its path.
func (a *authority) revoke(name string, last bool) string {
	a.w.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	if last {
		list.RevokedCertificateEntries = []x509.RevocationListEntry{
			{SerialNumber: big.NewInt(a.last), RevocationTime: time.Now().Add(-time.Minute)},
		}
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	a.w.check(err)
	a.write(name, "X509 CRL", der)
	return a.path(name)
}
