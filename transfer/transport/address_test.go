package transport

import (
	"errors"
	"testing"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Address{
		"ssh://host":                      {Scheme: SSH, Host: "host"},
		"ssh://root@host:2222":            {Scheme: SSH, User: "root", Host: "host", Port: 2222},
		"ssh://a.b+c%d@10.0.0.1/":         {Scheme: SSH, User: "a.b+c%d", Host: "10.0.0.1"},
		"ssh://me@corp@host":              {},
		"ssh://[2001:db8::1]:22":          {Scheme: SSH, Host: "2001:db8::1", Port: 22},
		"ssh://[fe80::1%eth0]":            {Scheme: SSH, Host: "fe80::1%eth0"},
		"tls://node-2.example:9000":       {Scheme: TLS, Host: "node-2.example", Port: 9000},
		"tls://node-2.example":            {Scheme: TLS, Host: "node-2.example", Port: DefaultPort},
		"tls://[::1]":                     {Scheme: TLS, Host: "::1", Port: DefaultPort},
		"unix:/run/nsmigrate.sock":        {Scheme: Unix, Path: "/run/nsmigrate.sock"},
		"unix:///run/nsmigrate.sock":      {Scheme: Unix, Path: "/run/nsmigrate.sock"},
		"unix:relative":                   {Scheme: Unix, Path: "relative"},
		"exec:ssh a ssh b nsmigrate":      {Scheme: Exec, Command: "ssh a ssh b nsmigrate"},
		"exec: ":                          {},
		"unix:":                           {},
		"":                                {},
		"host":                            {},
		"host:22":                         {},
		"ssh:host":                        {},
		"ssh://":                          {},
		"ssh://@host":                     {},
		"ssh://-oProxyCommand=touch@host": {},
		"ssh://-oProxyCommand=touch":      {},
		"ssh://root:secret@host":          {},
		"ssh://host:0":                    {},
		"ssh://host:65536":                {},
		"ssh://host:":                     {},
		"ssh://host:ssh":                  {},
		"ssh://host:+22":                  {},
		"ssh://::1":                       {},
		"ssh://[::1":                      {},
		"ssh://[host]":                    {},
		"ssh://[::1]22":                   {},
		"ssh://ho st":                     {},
		"ssh://host/path":                 {},
		"ssh://host;touch":                {},
		"ssh://höst":                      {},
		"tls://me@host":                   {},
		"http://host":                     {},
	} {
		got, err := Parse(text)
		if got != want || (err == nil) != (want != Address{}) {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, want)
		}
		if _, ok := errors.AsType[*AddressError](err); err != nil && !ok {
			t.Errorf("%s: %T", text, err)
		}
	}
}

// What is accepted can be printed and read again, and can't be an option of ssh.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"ssh://root@host:22", "tls://[::1]:1", "unix:/a", "exec:a b", "ssh://[fe80::1%eth0]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := Parse(text)
		if err != nil {
			if a != (Address{}) {
				t.Fatalf("%q: %+v and %v", text, a, err)
			}
			return
		}
		again, err := Parse(a.String())
		if err != nil || again != a {
			t.Fatalf("%q: %+v, printed %q, read %+v, %v", text, a, a, again, err)
		}
		if a.Scheme == SSH && (a.Host == "" || a.Host[0] == '-' || a.User != "" && a.User[0] == '-') {
			t.Fatalf("%q: %+v", text, a)
		}
	})
}
