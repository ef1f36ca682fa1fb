package criu

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timerfd"
	"google.golang.org/protobuf/proto"
)

// A thread's death signal is taken out of its image, and an image without one stays as it is.
func TestClearDeathSignal(t *testing.T) {
	const name = "core-1.img"
	for _, signal := range []*uint32{nil, new(uint32(0)), new(uint32(9))} {
		core := &criu_core.CoreEntry{Mtype: criu_core.CoreEntry_X86_64.Enum(), ThreadCore: &criu_core.ThreadCoreEntry{
			FutexRla: new(uint64(1)), FutexRlaLen: new(uint32(2)), PdeathSig: signal, Comm: new("thread"),
		}}
		body, err := proto.Marshal(core)
		if err != nil {
			t.Fatal(err)
		}
		b := binary.LittleEndian.AppendUint32(nil, magicCommon)
		b = binary.LittleEndian.AppendUint32(b, 1) // of some kind
		b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), append(b, body...), 0o600); err != nil {
			t.Fatal(err)
		}
		if has, err := hasField(dir, name, core, "thread_core", "pdeath_sig"); err != nil || has != (signal != nil) {
			t.Errorf("signal %v: found %v, %v", signal, has, err)
		}
		if err := clearDeathSignal(dir, name); err != nil {
			t.Fatal(err)
		}
		got, err := decodeOne[criu_core.CoreEntry](dir, name)
		if err != nil {
			t.Fatal(err)
		}
		if got.GetThreadCore().GetPdeathSig() != 0 || got.GetThreadCore().GetComm() != "thread" {
			t.Errorf("signal %v: it became %v", signal, got)
		}
	}
	if err := clearDeathSignal(t.TempDir(), name); err != nil {
		t.Errorf("a zombie: %v", err)
	}
}

// A periodic timer that has expired goes on, wherever it stands among the files of the image.
func TestRearm(t *testing.T) {
	const name = "files.img"
	write := func(files ...*fdinfo.FileEntry) (dir string) {
		b := binary.LittleEndian.AppendUint32(nil, magicCommon)
		b = binary.LittleEndian.AppendUint32(b, 1) // of some kind
		for i, f := range files {
			f.Type, f.Id = fdinfo.FdTypes_REG.Enum(), new(uint32(i))
			body, err := proto.Marshal(f)
			if err != nil {
				t.Fatal(err)
			}
			b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
			b = append(b, body...)
		}
		dir = t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	timer := &timerfd.TimerfdEntry{
		Id: new(uint32(1)), Flags: new(uint32(0)), Fown: &fown.FownEntry{Uid: new(uint32(0)), Euid: new(uint32(0)), Signum: new(uint32(0)), PidType: new(uint32(0)), Pid: new(uint32(0))},
		Clockid: new(uint32(1)), Ticks: new(uint64(3)), SettimeFlags: new(uint32(0)),
		Vsec: new(uint64(0)), Vnsec: new(uint64(0)), Isec: new(uint64(0)), Insec: new(uint64(500)),
	}
	dir := write(&fdinfo.FileEntry{}, &fdinfo.FileEntry{Tfd: timer}, &fdinfo.FileEntry{})
	if err := rearm(dir); err != nil {
		t.Fatal(err)
	}
	files, err := decode[fdinfo.FileEntry](dir, name, nil)
	if err != nil || len(files) != 3 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	if got := files[1].GetTfd(); got.GetVsec() != 0 || got.GetVnsec() != 500 {
		t.Errorf("the timer became %v", got)
	}
	if err := rearm(write(&fdinfo.FileEntry{})); err != nil {
		t.Error(err)
	}
	if err := rearm(write()); err != nil {
		t.Error(err)
	}
	if err := os.Truncate(filepath.Join(dir, name), 20); err != nil {
		t.Fatal(err)
	}
	if err := rearm(dir); err == nil {
		t.Error("an image that is cut off passes")
	}
}

// What is no message is found out.
func TestFieldOf(t *testing.T) {
	for name, b := range map[string]string{
		"tag": "\xff", "length": "\x0a\x05ab", "twice": "\x0a\x01a\x0a\x01b", "end": "\x0c",
	} {
		if got, err := fieldOf([]byte(b), 1); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got, err := fieldOf([]byte("\x10\x07\x0a\x00"), 1); err != nil || got == nil || len(got) > 0 {
		t.Errorf("an empty field: %v, %v", got, err)
	}
	if got, err := fieldOf([]byte("\x10\x07"), 1); err != nil || got != nil {
		t.Errorf("no field: %v, %v", got, err)
	}
}
