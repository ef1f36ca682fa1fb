package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// replay is a connection whose other side sends some bytes and goes away.
type replay struct{ io.Reader }

func (replay) Write(p []byte) (int, error) { return len(p), nil }

func (replay) Close() error { return nil }

// recorder keeps what is written to it. Its other side greets and is silent then.
type recorder struct {
	bytes.Buffer
	hello   io.Reader
	closing chan struct{}
}

func newRecorder() *recorder {
	return &recorder{hello: bytes.NewReader(greeting(time.Minute)), closing: make(chan struct{})}
}

func (r *recorder) Read(p []byte) (int, error) {
	if n, err := r.hello.Read(p); err == nil {
		return n, nil
	}
	<-r.closing
	return 0, io.EOF
}

func (r *recorder) CloseWrite() error {
	close(r.closing)
	return nil
}

func (r *recorder) Close() error { return nil }

// exchange is what is said in these tests.
type exchange struct {
	Messages []string
	Entries  map[string][]byte
}

func sample() exchange {
	mixed := make([]byte, 5*pageSize+100)
	for i := pageSize; i < 2*pageSize; i++ {
		mixed[i] = byte(i*i>>3) ^ byte(i*7919>>5)
	}
	return exchange{
		Messages: []string{"hello", "final"},
		Entries: map[string][]byte{
			"pages-1.img": mixed,
			"text":        bytes.Repeat([]byte("the same again and "), 100),
			"empty":       nil,
			"short":       []byte("short"),
		},
	}
}

// transcript returns the bytes of an exchange on the wire.
func transcript(tb testing.TB, e exchange, compression Compression) []byte {
	tb.Helper()
	r := newRecorder()
	c := New(r, Options{Compression: compression, Stall: time.Minute})
	ctx := context.Background()
	if err := c.Handshake(ctx); err != nil {
		tb.Fatal(err)
	}
	for _, m := range e.Messages {
		if err := c.Send(ctx, m, map[string]string{"text": m}); err != nil {
			tb.Fatal(err)
		}
	}
	for name, data := range e.Entries {
		if err := c.SendEntry(ctx, name, int64(len(data)), bytes.NewReader(data)); err != nil {
			tb.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		tb.Fatal(err)
	}
	return r.Bytes()
}

// hear listens to bytes until their end.
func hear(wire []byte, opts Options) (exchange, error) {
	c := New(replay{bytes.NewReader(wire)}, opts)
	defer c.fail(ErrClosed)
	ctx := context.Background()
	got := exchange{Entries: make(map[string][]byte)}
	if err := c.Handshake(ctx); err != nil {
		return got, err
	}
	for {
		m, err := c.Receive(ctx)
		switch {
		case err != nil:
			return got, err
		case m.Entry == nil:
			got.Messages = append(got.Messages, m.Type)
			continue
		}
		data, err := io.ReadAll(m.Entry)
		if err == nil {
			got.Entries[m.Entry.Name] = data
		} else if !errors.Is(err, ErrCanceled) {
			return got, err
		}
	}
}

// typed says whether an error is one that this package promises.
func typed(err error) bool {
	var version *VersionError
	var greeting *GreetingError
	return errors.As(err, &version) || errors.As(err, &greeting) ||
		slices.ContainsFunc([]error{
			ErrDamaged, ErrTruncated, ErrOrder, ErrTooLarge, ErrProtocol, ErrFlood, ErrStalled, ErrSlow,
		}, func(e error) bool { return errors.Is(err, e) })
}

// checkHeard fails unless what was heard is a part of what was said, and the rest an error.
func checkHeard(t *testing.T, what string, said, heard exchange, err error) {
	t.Helper()
	if !typed(err) {
		t.Fatalf("%s: %v", what, err)
	}
	if len(heard.Messages) > len(said.Messages) || !slices.Equal(heard.Messages, said.Messages[:len(heard.Messages)]) {
		t.Fatalf("%s: heard %q", what, heard.Messages)
	}
	for name, data := range heard.Entries {
		if want, ok := said.Entries[name]; !ok || !bytes.Equal(data, want) {
			t.Fatalf("%s: entry %q came as other bytes", what, name)
		}
	}
}

// No bit can change and no byte be lost without an error, and nothing wrong is delivered before it.
func TestDamage(t *testing.T) {
	for _, compression := range []Compression{None, Zstd} {
		said := sample()
		wire := transcript(t, said, compression)
		heard, err := hear(wire, Options{})
		if !errors.Is(err, io.EOF) || len(heard.Messages) != len(said.Messages) || len(heard.Entries) != len(said.Entries) {
			t.Fatalf("unaltered: %v, %v", heard, err)
		}
		for at := 0; at < len(wire); at += 1 + at/500 { // the first of it is mostly headers
			altered := slices.Clone(wire)
			altered[at] ^= 1 << (at % 8)
			heard, err := hear(altered, Options{})
			checkHeard(t, fmt.Sprintf("bit %d of byte %d flipped", at%8, at), said, heard, err)
			heard, err = hear(wire[:at], Options{})
			checkHeard(t, fmt.Sprintf("cut at byte %d", at), said, heard, err)
		}
	}
}

// frames cuts the frames of a transcript, without its greeting.
func frames(t *testing.T, wire []byte) [][]byte {
	t.Helper()
	var all [][]byte
	for rest := wire[greetingSize:]; len(rest) > 0; {
		h, err := parseHeader(rest)
		if err != nil {
			t.Fatal(err)
		}
		n := headerSize + int(h.length)
		all = append(all, rest[:n])
		rest = rest[n:]
	}
	return all
}

// Frames can't be lost, repeated or change places.
func TestOrder(t *testing.T) {
	said := sample()
	wire := transcript(t, said, None)
	all := frames(t, wire)
	check := func(what string, frames [][]byte) {
		t.Helper()
		heard, err := hear(append(greeting(time.Minute), bytes.Join(frames, nil)...), Options{})
		if !errors.Is(err, ErrOrder) && !errors.Is(err, ErrTruncated) {
			t.Errorf("%s: %v", what, err)
		}
		checkHeard(t, what, said, heard, err)
	}
	for i := range all {
		check(fmt.Sprintf("frame %d lost", i), slices.Delete(slices.Clone(all), i, i+1))
		if i == len(all)-1 {
			break // nobody listens after the last
		}
		check(fmt.Sprintf("frame %d twice", i), slices.Insert(slices.Clone(all), i, all[i]))
		swapped := slices.Clone(all)
		swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
		check(fmt.Sprintf("frames %d and %d swapped", i, i+1), swapped)
	}
}

// checksum of the payload of a frame.
func checksum(k kind, payload []byte) uint32 {
	if k == kindData {
		return digestOf(payload).sum()
	}
	return crc32.Checksum(payload, castagnoli)
}

// forge makes a frame that is right in form.
func forge(sequence uint32, k kind, payload string) []byte {
	h := header{
		kind: k, sequence: sequence, length: uint32(len(payload)), unpacked: uint32(len(payload)),
		sum: checksum(k, []byte(payload)),
	}
	return h.with(payload)
}

func (h header) with(payload string) []byte {
	b := make([]byte, headerSize)
	h.put(b)
	return append(b, payload...)
}

func message(typ, body string) string { return string(byte(len(typ))) + typ + body }

func entry(size string, name string) string { return strings.Repeat(size, 8) + name }

// Each way to break the protocol has its error.
func TestHostile(t *testing.T) {
	const unknown, known = "\xff", "\x00"
	end := strings.Repeat("\x00", endSize)
	sum := func(p string) uint32 { return checksum(kindData, []byte(p)) }
	for _, test := range []struct {
		name   string
		frames [][]byte
		want   error
	}{
		{"length", [][]byte{header{kind: kindData, length: 1<<32 - 1, unpacked: 1<<32 - 1}.with("")}, ErrTooLarge},
		{"message", [][]byte{header{kind: kindMessage, length: 1 << 30, unpacked: 1 << 30}.with("")}, ErrTooLarge},
		{"body", [][]byte{header{kind: kindMessage, length: 2 << 20, unpacked: 2 << 20}.with(message("note", ""))}, ErrTooLarge},
		{"ping with payload", [][]byte{forge(0, kindPing, "x")}, ErrTooLarge},
		{"name", [][]byte{forge(0, kindEntry, entry(known, strings.Repeat("n", nameSize+1)))}, ErrTooLarge},
		{"bomb", [][]byte{
			forge(0, kindEntry, entry(unknown, "name")),
			header{kind: kindData, sequence: 1, flags: zipped, length: 10, unpacked: 1 << 30}.with(""),
		}, ErrTooLarge},
		{"kind", [][]byte{forge(0, 77, "")}, ErrProtocol},
		{"flags", [][]byte{header{kind: kindMessage, flags: zipped, length: 9, unpacked: 9}.with("")}, ErrProtocol},
		{"unknown flags", [][]byte{header{kind: kindData, flags: 4, length: 9, unpacked: 9}.with("")}, ErrProtocol},
		{"plain that grows", [][]byte{header{kind: kindData, length: 9, unpacked: 10}.with("")}, ErrProtocol},
		{"empty data", [][]byte{forge(0, kindEntry, entry(unknown, "name")), forge(1, kindData, "")}, ErrProtocol},
		{"data outside", [][]byte{forge(0, kindData, "data")}, ErrProtocol},
		{"end outside", [][]byte{forge(0, kindEnd, end)}, ErrProtocol},
		{"message inside", [][]byte{
			forge(0, kindEntry, entry(unknown, "name")), forge(1, kindMessage, message("x", "")),
		}, ErrProtocol},
		{"entry inside", [][]byte{
			forge(0, kindEntry, entry(unknown, "name")), forge(1, kindEntry, entry(unknown, "name")),
		}, ErrProtocol},
		{"bye inside", [][]byte{forge(0, kindEntry, entry(unknown, "name")), forge(1, kindBye, "")}, ErrProtocol},
		{"parent", [][]byte{forge(0, kindEntry, entry(known, "../etc/passwd"))}, ErrProtocol},
		{"absolute", [][]byte{forge(0, kindEntry, entry(known, "/etc/passwd"))}, ErrProtocol},
		{"unclean", [][]byte{forge(0, kindEntry, entry(known, "a//b"))}, ErrProtocol},
		{"dot", [][]byte{forge(0, kindEntry, entry(known, "."))}, ErrProtocol},
		{"nul", [][]byte{forge(0, kindEntry, entry(known, "a\x00b"))}, ErrProtocol},
		{"not a text", [][]byte{forge(0, kindEntry, entry(known, "a\xffb"))}, ErrProtocol},
		{"negative size", [][]byte{forge(0, kindEntry, entry("\xfe", "name"))}, ErrProtocol},
		{"type", [][]byte{forge(0, kindMessage, message("a b", ""))}, ErrProtocol},
		{"no type", [][]byte{forge(0, kindMessage, "\x00{}")}, ErrProtocol},
		{"long type", [][]byte{forge(0, kindMessage, message(strings.Repeat("t", 100), ""))}, ErrProtocol},
		{"type beyond message", [][]byte{forge(0, kindMessage, "\x20ab")}, ErrProtocol},
		{"not JSON", [][]byte{forge(0, kindMessage, message("note", "{"))}, ErrProtocol},
		{"too much", [][]byte{forge(0, kindEntry, entry(known, "name")), forge(1, kindData, "data")}, ErrProtocol},
		{"too little", [][]byte{
			forge(0, kindEntry, "\x00\x00\x00\x00\x00\x00\x00\x08name"), forge(1, kindData, "data"), forge(2, kindEnd, end),
		}, ErrDamaged},
		{"digest", [][]byte{forge(0, kindEntry, entry(known, "name")), forge(1, kindEnd, end)}, ErrDamaged},
		{"zipped noise", [][]byte{
			forge(0, kindEntry, entry(unknown, "name")),
			header{kind: kindData, flags: zipped, sequence: 1, length: 5, unpacked: 50, sum: sum("noise")}.with("noise"),
		}, ErrDamaged},
		{"pages that are missing", [][]byte{
			forge(0, kindEntry, entry(unknown, "name")),
			header{kind: kindData, flags: sparse, sequence: 1, length: 1, unpacked: pageSize, sum: sum("\x01")}.with("\x01"),
		}, ErrProtocol},
		{"pages beyond the end", [][]byte{
			forge(0, kindEntry, entry(unknown, "name")),
			header{kind: kindData, flags: sparse, sequence: 1, length: 1, unpacked: pageSize, sum: sum("\x02")}.with("\x02"),
		}, ErrProtocol},
		{"pages without a place", [][]byte{
			forge(0, kindEntry, entry(unknown, "name")),
			header{kind: kindData, flags: sparse, sequence: 1, length: 2, unpacked: pageSize, sum: sum("\x00x")}.with("\x00x"),
		}, ErrProtocol},
		{"no map", [][]byte{
			forge(0, kindEntry, entry(unknown, "name")),
			header{kind: kindData, flags: sparse, sequence: 1, length: 1, unpacked: frameSize, sum: sum("x")}.with("x"),
		}, ErrProtocol},
		{"reserved", [][]byte{reserved()}, ErrProtocol},
	} {
		_, err := hear(append(greeting(time.Minute), bytes.Join(test.frames, nil)...), Options{})
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
}

func reserved() []byte {
	b := forge(0, kindPing, "")
	b[2] = 1
	sign(b, nil)
	return b
}

// sign makes the checksums of a frame right.
func sign(header, payload []byte) {
	binary.BigEndian.PutUint32(header[16:], checksum(kind(header[0]), payload))
	binary.BigEndian.PutUint32(header[20:], crc32.Checksum(header[:20], castagnoli))
}

// Lengths that are only announced cost no memory.
func TestMemory(t *testing.T) {
	opts := Options{Large: map[string]int{"offer": largest}}
	head := header{kind: kindMessage, length: largest, unpacked: largest}
	wire := append(greeting(time.Minute), head.with(message("offer", "[1,"))...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := hear(wire, opts)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrTruncated) {
		t.Error(err)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 8<<20 {
		t.Errorf("64 MiB that were only announced took %d bytes", used)
	}
}

// What isn't nsmigrate is shown, and what is too old or new is told.
func TestGreeting(t *testing.T) {
	other := greeting(time.Minute)
	other[9] = 9
	for wire, want := range map[string]string{
		"Welcome to Debian!\n": `the other side is not nsmigrate: it began with "Welcome to Debian!\n"`,
		"ns":                   `the other side is not nsmigrate: it began with "ns"`,
		"":                     "the other side ended before it said anything",
		string(other):          "the other side speaks version 9.0 of the protocol, this one speaks 3.0",
		magic + "\x00":         "the connection ended in the middle: in the greeting",
	} {
		_, err := hear([]byte(wire), Options{})
		if err == nil || err.Error() != "greet the other side: "+want {
			t.Errorf("%q: %v", wire, err)
		}
		var hint interface{ Remedy() string }
		if !errors.Is(err, ErrTruncated) && (!errors.As(err, &hint) || hint.Remedy() == "") {
			t.Errorf("%q: the error says nothing of what to do", wire)
		}
	}
}

// A newer minor version is understood, and so are large messages of types that may be large.
func TestNewer(t *testing.T) {
	newer := greeting(time.Minute)
	newer[11] = 200
	binary.BigEndian.PutUint32(newer[16:], crc32.Checksum(newer[:16], castagnoli))
	body, err := json.Marshal(strings.Repeat("x", 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	offer := message("offer", string(body))
	wire := slices.Concat(newer, forge(0, kindMessage, offer), forge(1, kindMessage, offer), forge(2, kindBye, ""))
	got, err := hear(wire, Options{Large: map[string]int{"offer": 2 << 20}})
	if !errors.Is(err, io.EOF) || len(got.Messages) != 2 {
		t.Errorf("%v, %v", got.Messages, err)
	}
}

func FuzzReceive(f *testing.F) {
	for _, compression := range []Compression{None, Zstd} {
		wire := transcript(f, sample(), compression)
		f.Add(wire[greetingSize:])
		f.Add(wire[greetingSize : len(wire)/2])
	}
	f.Add(reserved())
	f.Add(forge(0, kindMessage, message("note", "{}")))
	f.Fuzz(func(t *testing.T, frames []byte) {
		// Checksums would keep the fuzzer from everything behind them.
		fixed := slices.Concat(greeting(time.Minute), frames)
		for rest := fixed[greetingSize:]; len(rest) >= headerSize; {
			length := min(int(binary.BigEndian.Uint32(rest[8:])), len(rest)-headerSize)
			sign(rest, rest[headerSize:headerSize+length])
			rest = rest[headerSize+length:]
		}
		got, err := hear(fixed, Options{})
		if !typed(err) && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		for name := range got.Entries {
			if checkName(name) != nil {
				t.Fatalf("an entry is called %q", name)
			}
		}
	})
}

// What store packs, expand unpacks; and expand never returns another length.
func FuzzPages(f *testing.F) {
	f.Add(make([]byte, 3*pageSize+1), []byte{7}, 10)
	f.Add(bytes.Repeat([]byte{1}, 9*pageSize), []byte{1, 2}, pageSize+1)
	f.Fuzz(func(t *testing.T, data, payload []byte, n int) {
		if len(data) > 0 && len(data) <= frameSize {
			out := &outFrame{}
			out.makeRoom()
			out.n = copy(out.room(), data)
			bitmap, used := pages(out.data())
			out.store(bitmap, used)
			back := out.wire[headerSize:]
			if out.flags == sparse {
				var err error
				if back, err = expand(make([]byte, 0, len(data)), back, len(data)); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(back, data) {
				t.Fatal("other data came back")
			}
		}
		if n > 0 && n <= frameSize {
			got, err := expand(make([]byte, 0, n), payload, n)
			if err == nil && len(got) != n || err != nil && !errors.Is(err, ErrProtocol) {
				t.Fatalf("%d bytes instead of %d, %v", len(got), n, err)
			}
		}
	})
}
