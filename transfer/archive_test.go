package transfer_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer"
)

func manifest() *checkpoint.Manifest {
	return &checkpoint.Manifest{
		ID:      "0123456789abcdef0123456789abcdef",
		Created: time.Date(2026, 8, 23, 12, 0, 0, 5, time.UTC),
		Source:  checkpoint.SourceStopped,
		Target:  checkpoint.Target{NetNS: "svc"},
	}
}

// image writes files into a new directory and seals it.
func image(tb testing.TB, files map[string]string) (string, *checkpoint.Manifest) {
	tb.Helper()
	dir := tb.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	m := manifest()
	if err := checkpoint.Seal(tb.Context(), dir, m); err != nil {
		tb.Fatal(err)
	}
	return dir, m
}

func small() map[string]string {
	return map[string]string{
		"checkpoint/core-1.img":        "core",
		"checkpoint/tree-2/core-7.img": strings.Repeat("x", 600),
		"checkpoint/pages-1.img":       strings.Repeat("\x00", 4096),
		"config.dump":                  "{}",
		"netns/state.nsm":              "",
	}
}

func pack(tb testing.TB, dir string, m *checkpoint.Manifest, c transfer.Compression) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := transfer.Pack(tb.Context(), &b, dir, m, transfer.PackOptions{Compression: c}); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// tree returns the files below dir.
func tree(tb testing.TB, dir string) map[string]string {
	tb.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode() != 0o600 {
			tb.Errorf("%s has mode %v", path, info.Mode())
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		files[name] = string(data)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return files
}

func compressions(t *testing.T, f func(t *testing.T, c transfer.Compression)) {
	for _, c := range []transfer.Compression{transfer.Zstd, transfer.None} {
		t.Run(string(c), func(t *testing.T) { f(t, c) })
	}
}

func TestRoundTrip(t *testing.T) {
	compressions(t, func(t *testing.T, c transfer.Compression) {
		files := small()
		files["checkpoint/pages-2.img"] = strings.Repeat("page of memory\x00", 1<<18) // more than one chunk
		dir, m := image(t, files)
		archive := pack(t, dir, m, c)
		for name, r := range map[string]io.Reader{
			"file": bytes.NewReader(archive),
			"half": iotest.HalfReader(bytes.NewReader(archive)),
			"eof":  iotest.DataErrReader(bytes.NewReader(archive)),
		} {
			to := filepath.Join(t.TempDir(), "image")
			var done int64
			got, err := transfer.Unpack(t.Context(), r, to, transfer.UnpackOptions{Progress: func(n int64) { done = n }})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if done != m.Bytes() || got.ID != m.ID {
				t.Errorf("%s: %d bytes of %s", name, done, got.ID)
			}
			if _, err := checkpoint.OpenDir(t.Context(), to); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if want, have := tree(t, dir), tree(t, to); len(want) != len(have) {
				t.Errorf("%s: %d files, want %d", name, len(have), len(want))
			}
			if !bytes.Equal(pack(t, to, got, c), archive) {
				t.Errorf("%s: another archive of the same image differs", name)
			}
		}
	})
}

func refused(t *testing.T, archive []byte, dir string) error {
	t.Helper()
	m, err := transfer.Unpack(context.Background(), bytes.NewReader(bytes.Clone(archive)), dir, transfer.UnpackOptions{})
	if err == nil || m != nil {
		t.Fatalf("accepted")
	}
	if _, serr := os.Lstat(dir); !errors.Is(serr, fs.ErrNotExist) {
		t.Fatalf("%v: left behind: %v", err, serr)
	}
	return err
}

// TestFlip: one altered byte anywhere, and every truncation, is noticed.
func TestFlip(t *testing.T) {
	compressions(t, func(t *testing.T, c transfer.Compression) {
		dir, m := image(t, map[string]string{"checkpoint/core-1.img": "core", "config.dump": "{}"})
		archive := pack(t, dir, m, c)
		to := filepath.Join(t.TempDir(), "image")
		for i := range archive {
			bit := byte(1) << (i % 8)
			archive[i] ^= bit
			if err := refused(t, archive, to); !errors.Is(err, checkpoint.ErrDamaged) {
				t.Fatalf("byte %d: %v", i, err)
			}
			archive[i] ^= bit
		}
		for n := range archive {
			if err := refused(t, archive[:n], to); !errors.Is(err, checkpoint.ErrDamaged) {
				t.Fatalf("%d bytes: %v", n, err)
			}
		}
		for _, more := range []string{"\x00", "x", string(make([]byte, 512)), string(archive)} {
			if err := refused(t, append(bytes.Clone(archive), more...), to); !errors.Is(err, checkpoint.ErrDamaged) {
				t.Fatalf("%d more bytes: %v", len(more), err)
			}
		}
	})
}

// memory returns what a process's pages look like to a compressor: zeros, records with pointers, text, and what
// does not compress.
func memory(kind string, size int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	words := []string{"the ", "session:", "key ", "value=", "connection ", "2026-08-23T", "user-agent ", "0000000"}
	b := make([]byte, size)
	for at := 0; at < size; at += 4096 {
		page := b[at : at+4096]
		switch {
		case kind == "zero" || kind == "mixed" && at/4096%4 == 0:
		case kind == "random" || kind == "mixed" && at/4096%16 == 1:
			for i := 0; i < len(page); i += 8 {
				binary.NativeEndian.PutUint64(page[i:], r.Uint64())
			}
		case at/4096%2 == 0:
			for i := 0; i < len(page); i += 32 {
				binary.NativeEndian.PutUint64(page[i:], 0x7f5500000000+r.Uint64N(1<<20)<<4)
				binary.NativeEndian.PutUint32(page[i+16:], r.Uint32N(1000))
			}
		default:
			for i := 0; i < len(page); {
				i += copy(page[i:], words[r.IntN(len(words))])
			}
		}
	}
	return b
}

// measure makes a benchmark also tell the CPU time it takes, which on a busy machine is what can be compared.
func measure(b *testing.B, size int64) {
	b.SetBytes(size)
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	start := cpu()
	b.Cleanup(func() {
		b.ReportMetric((cpu()-start).Seconds()/float64(b.N)/float64(size)*1e9, "cpu-s/GB")
	})
}

// BenchmarkArchive measures both directions on tmpfs, in bytes of the image, with the ratio of its compression.
func BenchmarkArchive(b *testing.B) {
	const size = 64 << 20
	scratch, err := os.MkdirTemp("/dev/shm", "nsmigrate-bench-*")
	if err != nil {
		b.Skip(err)
	}
	b.Cleanup(func() { os.RemoveAll(scratch) })
	for _, kind := range []string{"zero", "mixed", "random"} {
		dir := filepath.Join(scratch, kind)
		if err := os.Mkdir(dir, 0o700); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "pages-1.img"), memory(kind, size), 0o600); err != nil {
			b.Fatal(err)
		}
		m := manifest()
		b.Run("seal/"+kind, func(b *testing.B) {
			measure(b, size)
			for b.Loop() {
				if err := checkpoint.Seal(b.Context(), dir, m); err != nil {
					b.Fatal(err)
				}
			}
		})
		for _, c := range []transfer.Compression{transfer.Zstd, transfer.None} {
			archive := pack(b, dir, m, c)
			b.Run("pack/"+string(c)+"/"+kind, func(b *testing.B) {
				measure(b, size)
				for b.Loop() {
					if err := transfer.Pack(b.Context(), io.Discard, dir, m, transfer.PackOptions{Compression: c}); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(size)/float64(len(archive)), "ratio")
			})
			b.Run("unpack/"+string(c)+"/"+kind, func(b *testing.B) {
				measure(b, size)
				to := filepath.Join(scratch, "to")
				for b.Loop() {
					if _, err := transfer.Unpack(b.Context(), bytes.NewReader(archive), to, transfer.UnpackOptions{}); err != nil {
						b.Fatal(err)
					}
					if err := os.RemoveAll(to); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
