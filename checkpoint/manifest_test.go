package checkpoint_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

const digest = checkpoint.SumPrefix + "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // of nothing

// valid returns a manifest with something in every part.
func valid() *checkpoint.Manifest {
	return &checkpoint.Manifest{
		Format:  checkpoint.Format{Major: checkpoint.FormatMajor},
		ID:      "0123456789abcdef0123456789abcdef",
		Created: time.Date(2026, 8, 23, 12, 0, 0, 0, time.UTC),
		Tool:    "1.0.0",
		Host:    checkpoint.Host{Name: "a", Kernel: "6.12.0", Arch: "amd64", CRIU: "4.2.1"},
		Target:  checkpoint.Target{NetNS: "svc", Inode: 4026531840},
		Source:  checkpoint.SourceStopped,
		Trees: []checkpoint.Tree{
			{
				Dir: "checkpoint", Root: 1, HostRoot: 4711, PIDNS: true, MountNS: checkpoint.MountOwn,
				IDs: []int{1, 7}, Command: []string{"redis-server"}, Cwd: "/",
				Binaries:  []checkpoint.Binary{{Path: "/usr/bin/redis-server", Size: 1, BuildID: "ab12"}},
				Files:     []checkpoint.File{{Path: "/etc/redis.conf", Size: 3}},
				Externals: []checkpoint.External{{Key: "tty[1:2]", Kind: "tty", FDs: []checkpoint.FD{{PID: 1, FD: 0}}}},
			},
			{Dir: "checkpoint/tree-2", Root: 9, HostRoot: 9, MountNS: checkpoint.MountHost},
		},
		Entries: []checkpoint.Entry{
			{Name: "checkpoint/core-1.img", Digest: digest},
			{Name: "config.dump", Digest: digest, Size: 5},
		},
	}
}

func TestValidate(t *testing.T) {
	if err := valid().Validate(); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 256)
	tests := []struct {
		want  string
		spoil func(m *checkpoint.Manifest)
	}{
		{
			"image format not supported: the image is of format 3.7, this nsmigrate reads up to 2.x: a newer nsmigrate is needed",
			func(m *checkpoint.Manifest) { m.Format = checkpoint.Format{Major: 3, Minor: 7} },
		},
		{
			"image format not supported: the image is of format 1.0, this nsmigrate reads 2.x: the nsmigrate that made it restores it",
			func(m *checkpoint.Manifest) { m.Format = checkpoint.Format{Major: 1} },
		},
		{"format 0.1 does not exist", func(m *checkpoint.Manifest) { m.Format = checkpoint.Format{Minor: 1} }},
		{"format 2.-1 does not exist", func(m *checkpoint.Manifest) { m.Format.Minor = -1 }},
		{`id "": want 32 hex digits`, func(m *checkpoint.Manifest) { m.ID = "" }},
		{`id "../x": want 32 hex digits`, func(m *checkpoint.Manifest) { m.ID = "../x" }},
		{"created: missing", func(m *checkpoint.Manifest) { m.Created = time.Time{} }},
		{"created: year 1969", func(m *checkpoint.Manifest) { m.Created = time.Date(1969, 1, 1, 0, 0, 0, 0, time.UTC) }},
		{`source "gone": want "stopped" or "running"`, func(m *checkpoint.Manifest) { m.Source = "gone" }},
		{`target: netns "../etc" is not the name of a namespace`, func(m *checkpoint.Manifest) { m.Target.NetNS = "../etc" }},
		{`target: netns ".." is not the name of a namespace`, func(m *checkpoint.Manifest) { m.Target.NetNS = ".." }},
		{`target: netns "a\nb" is not the name of a namespace`, func(m *checkpoint.Manifest) { m.Target.NetNS = "a\nb" }},
		{`target: netns "` + long + `" is not the name of a namespace`, func(m *checkpoint.Manifest) { m.Target.NetNS = long }},
		{`tree 0: directory "/checkpoint" is not checkpoint or directly below it`, func(m *checkpoint.Manifest) { m.Trees[0].Dir = "/checkpoint" }},
		{`tree 0: directory "netns" is not checkpoint or directly below it`, func(m *checkpoint.Manifest) { m.Trees[0].Dir = "netns" }},
		{`tree 1: directory "checkpoint/../x" is not checkpoint or directly below it`, func(m *checkpoint.Manifest) { m.Trees[1].Dir = "checkpoint/../x" }},
		{`tree 1: directory "checkpoint/a/b" is not checkpoint or directly below it`, func(m *checkpoint.Manifest) { m.Trees[1].Dir = "checkpoint/a/b" }},
		{`tree 1: directory "checkpoint" belongs to another tree`, func(m *checkpoint.Manifest) { m.Trees[1].Dir = "checkpoint" }},
		{"tree 0: root pid 0, on the host 4711: want positive ones", func(m *checkpoint.Manifest) { m.Trees[0].Root = 0 }},
		{"tree 0: root pid 1, on the host -1: want positive ones", func(m *checkpoint.Manifest) { m.Trees[0].HostRoot = -1 }},
		{`tree 0: mount namespace "": unknown`, func(m *checkpoint.Manifest) { m.Trees[0].MountNS = "" }},
		{"tree 0: id 0: want a positive one", func(m *checkpoint.Manifest) { m.Trees[0].IDs[0] = 0 }},
		{"tree 0: id 7: listed twice", func(m *checkpoint.Manifest) { m.Trees[0].IDs[0] = 7 }},
		{`tree 0: binary "x": path is not absolute and clean`, func(m *checkpoint.Manifest) { m.Trees[0].Binaries[0].Path = "x" }},
		{`tree 0: binary "/a/../b": path is not absolute and clean`, func(m *checkpoint.Manifest) { m.Trees[0].Binaries[0].Path = "/a/../b" }},
		{`tree 0: binary "/usr/bin/redis-server": size -1`, func(m *checkpoint.Manifest) { m.Trees[0].Binaries[0].Size = -1 }},
		{`tree 0: binary "/usr/bin/redis-server": build id "abc": want hex digits`, func(m *checkpoint.Manifest) { m.Trees[0].Binaries[0].BuildID = "abc" }},
		{`tree 0: binary "/usr/bin/redis-server": digest "md5:0": want sha256: and 64 hex digits`, func(m *checkpoint.Manifest) { m.Trees[0].Binaries[0].Digest = "md5:0" }},
		{`tree 0: file "x": path is not absolute and clean`, func(m *checkpoint.Manifest) { m.Trees[0].Files[0].Path = "x" }},
		{`tree 0: file "/etc/redis.conf": size -3`, func(m *checkpoint.Manifest) { m.Trees[0].Files[0].Size = -3 }},
		{`tree 0: external "": key or kind missing`, func(m *checkpoint.Manifest) { m.Trees[0].Externals[0].Key = "" }},
		{`tree 0: external "tty[1:2]": descriptor -1 of pid 1`, func(m *checkpoint.Manifest) { m.Trees[0].Externals[0].FDs[0].FD = -1 }},
		{`entry "": the name is not clean and relative`, func(m *checkpoint.Manifest) { m.Entries[0].Name = "" }},
		{`entry ".": the name is not clean and relative`, func(m *checkpoint.Manifest) { m.Entries[0].Name = "." }},
		{`entry "/etc/passwd": the name is not clean and relative`, func(m *checkpoint.Manifest) { m.Entries[0].Name = "/etc/passwd" }},
		{`entry "../x": the name is not clean and relative`, func(m *checkpoint.Manifest) { m.Entries[0].Name = "../x" }},
		{`entry "a//b": the name is not clean and relative`, func(m *checkpoint.Manifest) { m.Entries[0].Name = "a//b" }},
		{`entry "a/": the name is not clean and relative`, func(m *checkpoint.Manifest) { m.Entries[0].Name = "a/" }},
		{`entry "a\\b": the name is not clean and relative`, func(m *checkpoint.Manifest) { m.Entries[0].Name = `a\b` }},
		{`entry "a\x00b": the name is not clean and relative`, func(m *checkpoint.Manifest) { m.Entries[0].Name = "a\x00b" }},
		{`entry "manifest.json": the manifest can't list itself`, func(m *checkpoint.Manifest) { m.Entries[1].Name = "manifest.json" }},
		{`entry "manifest.sha256": the manifest can't list itself`, func(m *checkpoint.Manifest) { m.Entries[1].Name = "manifest.sha256" }},
		{`entry "manifest.json/x": "manifest.json" is a file`, func(m *checkpoint.Manifest) { m.Entries[1].Name = "manifest.json/x" }},
		{`entry "config.dump": listed twice`, func(m *checkpoint.Manifest) { m.Entries[0].Name = "config.dump" }},
		{`entry "config.dump": listed after "z"`, func(m *checkpoint.Manifest) { m.Entries[0].Name = "z" }},
		{`entry "config.dump/a/b": "config.dump" is a file`, func(m *checkpoint.Manifest) {
			m.Entries[0].Name, m.Entries[1].Name = "config.dump", "config.dump/a/b"
		}},
		{`entry "config.dump": size -1`, func(m *checkpoint.Manifest) { m.Entries[1].Size = -1 }},
		{`entry "config.dump": size 9223372036854775807`, func(m *checkpoint.Manifest) { m.Entries[0].Size, m.Entries[1].Size = 1, 1<<63-1 }},
		{`entry "config.dump": digest "sha256:00": want xxh3-sha256: and 64 hex digits`, func(m *checkpoint.Manifest) { m.Entries[1].Digest = "sha256:00" }},
		{
			`entry "config.dump": digest "` + strings.ToUpper(digest) + `": want xxh3-sha256: and 64 hex digits`,
			func(m *checkpoint.Manifest) { m.Entries[1].Digest = strings.ToUpper(digest) },
		},
		{"1048577 entries, more than 1048576", func(m *checkpoint.Manifest) { m.Entries = make([]checkpoint.Entry, checkpoint.MaxEntries+1) }},
	}
	for _, test := range tests {
		m := valid()
		test.spoil(m)
		if err := m.Validate(); err == nil || err.Error() != test.want {
			t.Errorf("%v\nwant\n%s", err, test.want)
		}
	}
}

func encode(tb testing.TB, m *checkpoint.Manifest) []byte {
	tb.Helper()
	data, err := checkpoint.EncodeManifest(m)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

func parse(data []byte) (*checkpoint.Manifest, error) {
	return checkpoint.ParseManifest(data, checkpoint.SumLine(data))
}

func TestParseManifest(t *testing.T) {
	data := encode(t, valid())
	m, err := parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if again := encode(t, m); !bytes.Equal(again, data) {
		t.Errorf("encoded again:\n%s\nwant\n%s", again, data)
	}

	replace := func(old, new string) []byte {
		if !bytes.Contains(data, []byte(old)) {
			t.Fatalf("no %q in\n%s", old, data)
		}
		return bytes.Replace(data, []byte(old), []byte(new), 1)
	}
	newer := replace(`"minor": 0`, `"minor": 3, "more": [1]`)
	m, err = parse(newer)
	if err != nil || m.Format.Minor != 3 {
		t.Errorf("newer minor version: %v", err)
	}
	if _, err := checkpoint.EncodeManifest(m); !errors.Is(err, checkpoint.ErrFormat) {
		t.Errorf("a newer minor version is written again: %v", err)
	}
	// nothing but the version is known of another major one
	for _, major := range []int{1, 3} {
		other := fmt.Appendf(nil, `{"format": {"major": %d}, "id": 7, "entries": "elsewhere"}`, major)
		if _, err := parse(other); !errors.Is(err, checkpoint.ErrFormat) || errors.Is(err, checkpoint.ErrDamaged) {
			t.Errorf("major version %d: %v", major, err)
		}
	}
	for _, test := range []struct {
		want string
		data []byte
	}{
		{"damaged image: manifest.json: malformed: unexpected end of JSON input", data[:len(data)/2]},
		{"damaged image: manifest.json: malformed: unexpected end of JSON input", nil},
		{"damaged image: manifest.json: malformed: invalid character 'x' after top-level value", append(bytes.Clone(data), 'x')},
		{"damaged image: manifest.json: malformed: tree 0: id 0: want a positive one", replace(`"ids": [`, `"ids": [0,`)},
		{
			"damaged image: manifest.json: malformed: json: cannot unmarshal number into Go struct field Manifest.tool of type string",
			replace(`"tool": "1.0.0"`, `"tool": 1`),
		},
	} {
		if _, err := parse(test.data); !errors.Is(err, checkpoint.ErrDamaged) || err.Error() != test.want {
			t.Errorf("%v\nwant\n%s", err, test.want)
		}
	}
	if _, err := checkpoint.ParseManifest(data, checkpoint.SumLine(newer)); !errors.Is(err, checkpoint.ErrDamaged) {
		t.Errorf("wrong digest: %v", err)
	}
}

// FuzzParseManifest: what is accepted is valid, and survives another round unchanged.
func FuzzParseManifest(f *testing.F) {
	f.Add(encode(f, valid()))
	f.Add([]byte(`{"format":{"major":2}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parse(data)
		if err != nil {
			if m != nil || !errors.Is(err, checkpoint.ErrDamaged) && !errors.Is(err, checkpoint.ErrFormat) {
				t.Errorf("%v", err)
			}
			return
		}
		if m.Format.Minor > checkpoint.FormatMinor {
			return
		}
		once := encode(t, m)
		again, err := parse(once)
		if err != nil {
			t.Fatal(err)
		}
		if twice := encode(t, again); !bytes.Equal(once, twice) {
			t.Errorf("%s\nbecame\n%s", once, twice)
		}
	})
}
