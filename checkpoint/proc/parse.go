package proc

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
)

// ErrMalformed means that a file of /proc is not of the form that proc(5) promises.
var ErrMalformed = errors.New("malformed")

// parseStatus reads /proc/PID/status into p. Lines it does not know are skipped: every kernel adds some.
// kernel says that the entry is a kernel thread (Linux >= 6.8 tells; older ones are told by their lack of
// any namespace but the first).
func parseStatus(p *Process, b []byte) (kernel bool, err error) {
	for line := range lines(b) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			return false, fmt.Errorf("status: %w line %q", ErrMalformed, line)
		}
		value = strings.TrimSpace(value)
		switch key {
		case "Name":
			p.Comm = unescape(value)
		case "State":
			if value == "" {
				return false, fmt.Errorf("status: %w state", ErrMalformed)
			}
			p.State = value[0]
		case "Pid":
			p.PID, err = strconv.Atoi(value)
		case "PPid":
			p.PPID, err = strconv.Atoi(value)
		case "TracerPid":
			p.Tracer, err = strconv.Atoi(value)
		case "NSpid":
			p.NSpid, err = ints(value)
		case "NSpgid":
			p.NSpgid, err = ints(value)
		case "NSsid":
			p.NSsid, err = ints(value)
		case "Uid":
			p.UIDs, err = four(value)
		case "Gid":
			p.GIDs, err = four(value)
		case "CapPrm":
			p.Permitted, err = strconv.ParseUint(value, 16, 64)
		case "Seccomp":
			p.Seccomp, err = strconv.Atoi(value)
		case "Kthread":
			kernel = value == "1"
		}
		if err != nil {
			return false, fmt.Errorf("status: %w %s: %w", ErrMalformed, key, err)
		}
	}
	if p.PID <= 0 || p.State == 0 {
		return false, fmt.Errorf("status: %w: no process id or state", ErrMalformed)
	}
	if len(p.NSpid) == 0 {
		p.NSpid = []int{p.PID}
	}
	return kernel, nil
}

// parseTerminal reads the controlling terminal's device number from /proc/PID/stat. The name in parentheses may
// contain anything, so fields are counted from the last one.
func parseTerminal(b []byte) (int, error) {
	i := bytes.LastIndexByte(b, ')')
	fields := strings.Fields(string(b[i+1:])) // state ppid pgrp session tty_nr
	if i < 0 || len(fields) < 5 {
		return 0, fmt.Errorf("stat: %w %q", ErrMalformed, b)
	}
	n, err := strconv.Atoi(fields[4])
	if err != nil {
		return 0, fmt.Errorf("stat: %w terminal: %w", ErrMalformed, err)
	}
	return n, nil
}

// parseFDInfo reads /proc/PID/fdinfo/N into f. Its first four keys are common to all files.
func parseFDInfo(f *FD, b []byte) error {
	f.TTY = -1
	for line := range lines(b) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			continue // eventpoll and others write lines of several pairs
		}
		value = strings.TrimSpace(value)
		var err error
		switch key {
		case "pos":
			f.Pos, err = strconv.ParseInt(value, 10, 64)
		case "flags":
			var v int64
			v, err = strconv.ParseInt(value, 8, 64)
			f.Flags = int(v)
		case "mnt_id":
			f.MntID, err = strconv.Atoi(value)
		case "ino":
			f.Ino, err = strconv.ParseUint(value, 10, 64)
		case "tty-index":
			f.TTY, err = strconv.Atoi(value)
		case "iff":
			f.Tun = value
		}
		if err != nil && key != "ino" { // inotify writes "inotify wd:1 ino:..", fanotify the like
			return fmt.Errorf("fdinfo: %w %s: %w", ErrMalformed, key, err)
		}
	}
	return nil
}

// parseMaps reads /proc/PID/maps.
func parseMaps(b []byte) ([]Mapping, error) {
	var list []Mapping
	for line := range lines(b) {
		// start-end perms offset dev inode path; the path may contain blanks.
		span, rest, _ := strings.Cut(line, " ")
		perms, rest, _ := strings.Cut(rest, " ")
		_, rest, _ = strings.Cut(rest, " ")
		_, rest, _ = strings.Cut(rest, " ")
		inode, path, _ := strings.Cut(rest, " ")
		start, end, _ := strings.Cut(span, "-")
		m := Mapping{Perms: perms}
		var errs [3]error
		m.Start, errs[0] = strconv.ParseUint(start, 16, 64)
		m.End, errs[1] = strconv.ParseUint(end, 16, 64)
		m.Ino, errs[2] = strconv.ParseUint(inode, 10, 64)
		if errors.Join(errs[:]...) != nil || len(perms) < 4 {
			return nil, fmt.Errorf("maps: %w line %q", ErrMalformed, line)
		}
		m.Path, m.Deleted = strings.CutSuffix(unescape(strings.TrimLeft(path, " ")), deletedMark)
		list = append(list, m)
	}
	return list, nil
}

// mappedFiles lists the files of mappings, each once, in order of their first mapping.
func mappedFiles(mappings []Mapping) []FileMap {
	var files []FileMap
	index := make(map[FileMap]int) // by path, inode and deletion
	for _, m := range mappings {
		if m.Path == "" || m.Path[0] == '[' || m.Ino == 0 && m.Path[0] != '/' {
			continue // anonymous, perhaps with a name
		}
		key := FileMap{Path: m.Path, Ino: m.Ino, Deleted: m.Deleted}
		i, seen := index[key]
		if !seen {
			i = len(files)
			index[key] = i
			key.Range = fmt.Sprintf("%x-%x", m.Start, m.End)
			files = append(files, key)
		}
		files[i].Exec = files[i].Exec || m.Perms[2] == 'x'
		files[i].Shared = files[i].Shared || m.Perms[3] == 's'
		files[i].Written = files[i].Written || m.Perms[1] == 'w' && m.Perms[3] == 's'
	}
	return files
}

// deletedMark is what the kernel appends to the path of a file without a name.
const deletedMark = " (deleted)"

// parseMountinfo reads /proc/PID/mountinfo.
func parseMountinfo(b []byte) ([]Mount, error) {
	var mounts []Mount
	for line := range lines(b) {
		fields := strings.Fields(line)
		dash := -1
		for i := 6; i < len(fields); i++ {
			if fields[i] == "-" {
				dash = i
				break
			}
		}
		if dash < 0 || len(fields) < dash+3 {
			return nil, fmt.Errorf("mountinfo: %w line %q", ErrMalformed, line)
		}
		id, err1 := strconv.Atoi(fields[0])
		parent, err2 := strconv.Atoi(fields[1])
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("mountinfo: %w line %q", ErrMalformed, line)
		}
		mounts = append(mounts, Mount{
			ID: id, Parent: parent, Dev: fields[2],
			Root: unescape(fields[3]), Point: unescape(fields[4]), Options: fields[5],
			Optional: append([]string(nil), fields[6:dash]...),
			Type:     fields[dash+1], Source: unescape(fields[dash+2]),
		})
	}
	return mounts, nil
}

// parseNS reads the target of a link in /proc/PID/ns, "net:[4026531833]".
func parseNS(link string) (uint64, error) {
	_, rest, ok := strings.Cut(link, ":[")
	digits, closed := strings.CutSuffix(rest, "]")
	if !ok || !closed {
		return 0, fmt.Errorf("namespace: %w link %q", ErrMalformed, link)
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("namespace: %w link %q", ErrMalformed, link)
	}
	return n, nil
}

// Inode reads the number in a link target of the given kind: Inode("socket:[7]", "socket") is 7.
func Inode(target, kind string) (uint64, bool) {
	if !strings.HasPrefix(target, kind+":[") {
		return 0, false
	}
	n, err := parseNS(target)
	return n, err == nil
}

func lines(b []byte) iter.Seq[string] {
	return func(yield func(string) bool) {
		for line := range bytes.Lines(b) {
			if !yield(string(bytes.TrimSuffix(line, []byte("\n")))) {
				return
			}
		}
	}
}

// unescape undoes the kernel's octal escapes of blanks and control characters (seq_escape).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func ints(s string) ([]int, error) {
	fields := strings.Fields(s)
	list := make([]int, len(fields))
	for i, f := range fields {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil, err
		}
		list[i] = n
	}
	return list, nil
}

func four(s string) (ids [4]int, err error) {
	list, err := ints(s)
	if err == nil && len(list) != 4 {
		err = fmt.Errorf("%d numbers instead of 4", len(list))
	}
	copy(ids[:], list)
	return ids, err
}
