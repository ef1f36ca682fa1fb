package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"google.golang.org/protobuf/proto"
)

// Orphan takes the parent-death signal (PR_SET_PDEATHSIG of prctl(2)) out of the root of a tree that was just
// dumped. The parent it was about, often `unshare --kill-child`, stays behind; on restore the root's first parent
// is criu, whose end would kill the tree.
func Orphan(dir string) error {
	tasks, err := decode[pstree.PstreeEntry](dir, "pstree.img", nil)
	if err != nil {
		return err
	}
	if len(tasks) == 0 {
		return errors.New("a CRIU image without processes")
	}
	for _, tid := range tasks[0].GetThreads() {
		if err := clearDeathSignal(dir, fmt.Sprintf("core-%d.img", tid)); err != nil {
			return err
		}
	}
	return nil
}

func clearDeathSignal(dir, name string) error {
	core, err := decodeOne[criu_core.CoreEntry](dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a zombie
	}
	if err != nil {
		return err
	}
	if core.GetThreadCore().GetPdeathSig() == 0 {
		return nil
	}
	core.ThreadCore.PdeathSig = nil
	path := filepath.Join(dir, name)
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	body, err := proto.Marshal(core)
	if err != nil {
		return fmt.Errorf("write CRIU image %s: %w", path, err)
	}
	const magic = 8
	b := binary.LittleEndian.AppendUint32(old[:magic:magic], uint32(len(body)))
	return os.WriteFile(path, append(b, body...), 0o600)
}
