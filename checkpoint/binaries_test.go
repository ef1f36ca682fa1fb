package checkpoint

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/netstate/ns/nstest"
)

// The binaries of a running process are recognised on this host, and each difference is named.
func TestBinaries(t *testing.T) {
	nstest.NeedRoot(t) // map_files
	self, err := proc.Default.Read(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	trees := []proc.Tree{{Processes: []proc.Process{self, self}}}
	lists, err := ReadBinaries(context.Background(), trees)
	if err != nil {
		t.Fatal(err)
	}
	if len(lists) != 1 || len(lists[0]) == 0 {
		t.Fatalf("binaries %+v", lists)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(lists[0], func(b Binary) bool { return b.Path == exe }) {
		t.Errorf("%s is not in %+v", exe, lists[0])
	}
	if p := CheckBinaries("/", lists[0]); len(p) > 0 {
		t.Errorf("own binaries: %v", p)
	}
}

func TestCheckBinaries(t *testing.T) {
	root := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("same", "abc")
	write("longer", "abcd")
	write("other", "abd")
	os.Mkdir(filepath.Join(root, "dir"), 0o700)
	const abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	var want []Binary
	for _, name := range []string{"/same", "/missing", "/longer", "/other", "/dir", "/missing"} {
		want = append(want, Binary{Path: name, Size: 3, Digest: abc})
	}
	want = append(want, Binary{Path: "/same", Size: 3, BuildID: "0123"})
	var got []string
	for _, p := range CheckBinaries(root, want) {
		got = append(got, p.Object+": "+p.Reason)
	}
	wanted := []string{
		"/missing: it is missing here",
		"/longer: it has 4 bytes here, needed are 3",
		"/other: it has other contents here",
		"/dir: it is no regular file here",
		"/same: it is another build here (build-id none, needed is 0123)",
	}
	if !slices.Equal(got, wanted) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(wanted, "\n"))
	}
	got = nil
	for _, p := range CheckFiles(root, []File{{"/same", 3}, {"/longer", 3}, {"/../../missing", 1}}) {
		got = append(got, p.Object+": "+p.Reason)
	}
	wanted = []string{"/longer: it has 4 bytes here, needed are 3", "/../../missing: it is missing here"}
	if !slices.Equal(got, wanted) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(wanted, "\n"))
	}
}

func FuzzBuildID(f *testing.F) {
	f.Add([]byte("\x04\x00\x00\x00\x04\x00\x00\x00\x03\x00\x00\x00GNU\x00\xde\xad\xbe\xef"), uint64(4))
	f.Add([]byte("\x04\x00\x00\x00\x10\x00\x00\x00\x05\x00\x00\x00GNU\x00"), uint64(8))
	f.Fuzz(func(t *testing.T, notes []byte, align uint64) {
		if id := gnuBuildID(notes, binary.LittleEndian, align); len(id) > len(notes) {
			t.Fatalf("%d bytes out of %d", len(id), len(notes))
		}
	})
}
