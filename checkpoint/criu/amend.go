package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Amend corrects the images of a tree that was just dumped where they would not bring back what was there.
func Amend(dir string) error {
	tasks, err := decode[pstree.PstreeEntry](dir, "pstree.img", nil)
	if err != nil {
		return err
	}
	if len(tasks) == 0 {
		return errors.New("a CRIU image without processes")
	}
	return errors.Join(orphan(dir, tasks[0]), detach(dir, tasks), rearm(dir))
}

// WarmAmend takes what only the first Amend of a process needs out of the blackout: two milliseconds in which the types of
// the messages are gone through.
func WarmAmend() {
	seen := make(map[protoreflect.FullName]bool)
	var visit func(m protoreflect.Message)
	visit = func(m protoreflect.Message) {
		if seen[m.Descriptor().FullName()] {
			return
		}
		seen[m.Descriptor().FullName()] = true
		proto.Unmarshal(nil, m.Interface()) //nolint:errcheck // of nothing
		for i := range m.Descriptor().Fields().Len() {
			switch f := m.Descriptor().Fields().Get(i); {
			case f.Message() == nil || f.IsMap():
			case f.IsList():
				visit(m.NewField(f).List().NewElement().Message())
			default:
				visit(m.NewField(f).Message())
			}
		}
	}
	for _, m := range []proto.Message{
		new(pstree.PstreeEntry), new(criu_core.CoreEntry), new(tty.TtyInfoEntry), new(fdinfo.FileEntry),
		new(pagemap.PagemapHead), new(pagemap.PagemapEntry),
	} {
		visit(m.ProtoReflect())
	}
}

// orphan takes the parent-death signal (PR_SET_PDEATHSIG of prctl(2)) out of the root of a tree that was just
// dumped. The parent it was about, often `unshare --kill-child`, stays behind; on restore the root's first parent
// is criu, whose end would kill the tree.
func orphan(dir string, root *pstree.PstreeEntry) error {
	for _, tid := range root.GetThreads() {
		if err := clearDeathSignal(dir, fmt.Sprintf("core-%d.img", tid)); err != nil {
			return err
		}
	}
	return nil
}

func clearDeathSignal(dir, name string) error {
	// There may be hundreds of threads, and few have one.
	if has, err := hasField(dir, name, new(criu_core.CoreEntry), "thread_core", "pdeath_sig"); err == nil && !has {
		return nil
	}
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
	return rewrite(dir, name, []*criu_core.CoreEntry{core})
}

// hasField reports whether a message of an image, which are like m, has a field: the path leads to it through messages in
// it. The image is not decoded for that.
func hasField(dir, name string, m proto.Message, path ...protoreflect.Name) (bool, error) {
	im, err := openImage(dir, name)
	if err != nil {
		return false, err
	}
	defer im.Close()
	for {
		b, err := im.next()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		d := m.ProtoReflect().Descriptor()
		for _, step := range path {
			if err != nil || b == nil {
				break
			}
			f := d.Fields().ByName(step)
			b, err = fieldOf(b, f.Number())
			d = f.Message()
		}
		switch {
		case err != nil:
			return false, im.wrap(err)
		case b != nil:
			return true, nil
		}
	}
}

// fieldOf returns the bytes of a field of a message, nil if there is none. A field that is split is told as malformed.
func fieldOf(b []byte, number protowire.Number) (found []byte, err error) {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return nil, protowire.ParseError(size)
		}
		b = b[size:]
		if size = protowire.ConsumeFieldValue(n, kind, b); size < 0 {
			return nil, protowire.ParseError(size)
		}
		if n == number && found != nil {
			return nil, errors.New("a field that comes twice")
		}
		if n == number {
			found = b[:size:size]
			if kind == protowire.BytesType {
				if found, size = protowire.ConsumeBytes(b); found == nil {
					found = []byte{}
				}
			}
		}
		b = b[size:]
	}
	return found, nil
}

// detach takes the session out of terminals that control one whose leader stays behind, a shell's for instance.
// CRIU gives such a terminal back only through the leader, and refuses the restore without it, --shell-job or not
// (tty_find_restoring_task of criu/tty.c, for a terminal that is inherited).
func detach(dir string, tasks []*pstree.PstreeEntry) error {
	const name = "tty-info.img"
	terminals, err := decode[tty.TtyInfoEntry](dir, name, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no terminal at all
	}
	if err != nil {
		return err
	}
	changed := false
	for _, t := range terminals {
		led := slices.ContainsFunc(tasks, func(task *pstree.PstreeEntry) bool {
			return task.GetPid() == t.GetSid() && task.GetSid() == t.GetSid()
		})
		if t.GetType() == tty.TtyType_EXT_TTY && t.GetSid() != 0 && !led {
			t.Sid, t.Pgrp = new(uint32(0)), new(uint32(0))
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return rewrite(dir, name, terminals)
}

// rearm starts periodic timers again that had expired when they were dumped. The kernel stops a timerfd at its
// expiration until it is read (timerfd_tmrproc of fs/timerfd.c) and shows no time to the next one; CRIU takes
// that for a timer that was switched off, and a restored one would never tick again.
func rearm(dir string) error {
	const name = "files.img"
	// There may be thousands of connections, and few timers.
	if has, err := hasField(dir, name, new(fdinfo.FileEntry), "tfd"); err == nil && !has {
		return nil
	}
	files, err := decode[fdinfo.FileEntry](dir, name, nil)
	if err != nil {
		return err
	}
	changed := false
	for _, f := range files {
		t := f.GetTfd()
		periodic := t.GetIsec() != 0 || t.GetInsec() != 0
		if periodic && t.GetTicks() > 0 && t.GetVsec() == 0 && t.GetVnsec() == 0 {
			t.Vsec, t.Vnsec = t.Isec, t.Insec
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return rewrite(dir, name, files)
}

// rewrite replaces the messages of an image whose kind has no raw data.
func rewrite[M proto.Message](dir, name string, messages []M) error {
	path := filepath.Join(dir, name)
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	const magic = 8
	b := slices.Clone(old[:magic])
	for _, m := range messages {
		body, err := proto.Marshal(m)
		if err != nil {
			return fmt.Errorf("write CRIU image %s: %w", path, err)
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
		b = append(b, body...)
	}
	return os.WriteFile(path, b, 0o600)
}
