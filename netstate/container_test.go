package netstate_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/netstate"
)

var update = flag.Bool("update", false, "take new captures for testdata (needs root) and rewrite the golden files")

// stored lists the captures in testdata.
func stored(tb testing.TB) map[string][]byte {
	tb.Helper()
	files, err := filepath.Glob("testdata/*.nsm")
	if err != nil || len(files) == 0 {
		tb.Fatalf("no captures in testdata: %v", err)
	}
	states := make(map[string][]byte, len(files))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			tb.Fatal(err)
		}
		states[strings.TrimSuffix(filepath.Base(f), ".nsm")] = b
	}
	return states
}

// TestUpdate takes the captures that the other tests of this file read.
func TestUpdate(t *testing.T) {
	if !*update {
		t.Skip("only with -update")
	}
	for _, c := range cases() {
		host, source := arrange(t, c.script)
		settleDown(t, source, host)
		var b bytes.Buffer
		s := capture(t, source, host)
		// Hundreds of parameters that nobody altered would only make the files large.
		s.Sysctls = slices.DeleteFunc(s.Sysctls, func(c netstate.Sysctl) bool { return c.Fresh })
		if _, err := s.WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		switch c.name {
		case "container", "bridge", "routes", "nexthops", "rules", "tun and tap", "macvlan on a parent outside":
			name := filepath.Join("testdata", strings.ReplaceAll(c.name, " ", "-")+".nsm")
			if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// golden compares text with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs:\n%s", path, lineDiff(string(want), got))
	}
}

// site is a made-up host that has everything the stored captures hang on.
func site(s *netstate.State) netstate.Site {
	site := netstate.Site{HostFD: 3, NSFD: 4, Uplinks: map[string]netstate.UplinkTarget{}, Parents: map[string]int32{}, Present: map[string]bool{"lo": true}}
	for i, u := range s.Uplinks() {
		site.Uplinks[u.Name] = u.Target(nil)
		if u.Parent != "" {
			site.Parents[u.Parent] = int32(100 + i)
		}
	}
	return site
}

// TestGolden renders stored captures and their plans: pure functions, so it needs neither root nor the
// kernel that they were taken from.
func TestGolden(t *testing.T) {
	for name, b := range stored(t) {
		t.Run(name, func(t *testing.T) {
			s, err := netstate.ReadState(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			if err := netstate.Render(&text, s); err != nil {
				t.Fatal(err)
			}
			golden(t, name+".txt", text.String())
			plan, err := netstate.Plan(s, site(s))
			if err != nil {
				t.Fatal(err)
			}
			text.Reset()
			for _, batch := range plan {
				text.WriteString(batch.Text(s))
			}
			golden(t, name+".plan", text.String())
			if changes := netstate.Diff(s, s); len(changes) > 0 {
				t.Errorf("a state differs from itself: %v", changes)
			}
			if b, err := json.Marshal(s); err != nil || !json.Valid(b) {
				t.Errorf("JSON: %v", err)
			}
		})
	}
}

func TestReadStateMalformed(t *testing.T) {
	whole := stored(t)["container"]
	for _, c := range []struct {
		name   string
		change func([]byte) []byte
		want   error
		text   string
	}{
		{"empty", func([]byte) []byte { return nil }, netstate.ErrMalformed, "truncated"},
		{"no magic", func(b []byte) []byte { b[0] = 'X'; return b }, netstate.ErrMalformed, "no magic number"},
		{"major", func(b []byte) []byte { b[8] = 9; return b }, netstate.ErrVersion, "version 9.0"},
		{"minor", func(b []byte) []byte { b[10] = 9; return b }, netstate.ErrVersion, "version 1.9"},
		{"byte order", func(b []byte) []byte { b[12] = 3 - b[12]; return b }, netstate.ErrVersion, "another byte order"},
		{"header", func(b []byte) []byte { b[13] = 1; return b }, netstate.ErrMalformed, "header"},
		{"unknown section", func(b []byte) []byte { b[17] = 0x7f; return b }, netstate.ErrVersion, "section"},
		{"huge section", func(b []byte) []byte { b[23] = 0xff; return b }, netstate.ErrMalformed, "head of section"},
		{"long section", func(b []byte) []byte { b[22] = 0xff; return b }, netstate.ErrMalformed, "truncated"},
		{"cut", func(b []byte) []byte { return b[:len(b)-1] }, netstate.ErrMalformed, "truncated"},
		{"no end", func(b []byte) []byte { return b[:len(b)-8] }, netstate.ErrMalformed, "truncated"},
		{"more", func(b []byte) []byte { return append(b, 0) }, netstate.ErrMalformed, "data after the end"},
		{"sequence", func(b []byte) []byte { b[24+8] = 1; return b }, netstate.ErrMalformed, "not in stored form"},
		{"message type", func(b []byte) []byte { b[24+4] = 99; return b }, netstate.ErrMalformed, "message of type 99"},
		{"two links of one index", func(b []byte) []byte {
			i := bytes.Index(b, []byte("eth0\x00"))
			copy(b[i:], "lo\x00\x00")
			return b
		}, netstate.ErrMalformed, "twice"},
		{"JSON", func(b []byte) []byte {
			return bytes.Replace(b, []byte(`{"kernel":`), []byte(`{"Kernel":`), 1)
		}, netstate.ErrMalformed, "canonical"},
		{"sysctl path", func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"ipv4/tcp_syncookies"`), []byte(`"../4/tcp_syncookies"`), 1)
		}, netstate.ErrMalformed, "sysctl path"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := netstate.ReadState(bytes.NewReader(c.change(bytes.Clone(whole))))
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %v with %q", err, c.want, c.text)
			}
		})
	}
}

// FuzzReadState: what is accepted is written again byte for byte, and survives everything that is done with
// a state before the kernel sees it.
func FuzzReadState(f *testing.F) {
	for _, b := range stored(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := netstate.ReadState(bytes.NewReader(b))
		if err != nil {
			if s != nil {
				t.Fatal("a state with an error")
			}
			return
		}
		var again bytes.Buffer
		if _, err := s.WriteTo(&again); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, again.Bytes()) {
			t.Fatal("accepted, and written differently")
		}
		if changes := netstate.Diff(s, s); len(changes) > 0 {
			t.Fatalf("differs from itself: %v", changes)
		}
		if err := netstate.Render(&bytes.Buffer{}, s); err != nil {
			t.Fatal(err)
		}
		if _, err := json.Marshal(s); err != nil {
			t.Fatal(err)
		}
		netstate.Diff(nil, s)
		s.Addresses()
		if plan, err := netstate.Plan(s, site(s)); err == nil {
			for _, batch := range plan {
				batch.Text(s)
			}
		}
	})
}
