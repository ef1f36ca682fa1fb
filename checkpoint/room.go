package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

// Needs is the room that a service needs on a host, beside what it uses there already.
type Needs struct {
	Memory    int64  // bytes that the service has in memory and that no file holds
	WorkDir   string // where its image is gathered, as of [Scratch]
	Processes bool   // it is to live there: its memory is needed beside the image
	Image     bool   // its image is gathered there
}

// CheckRoom returns a problem for each kind of room of which this host has not enough. It is for the time in which there
// is a choice: what fails for lack of room later is taken back.
func CheckRoom(n Needs) ([]Problem, error) {
	dir := ScratchDir(n.WorkDir)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return nil, fmt.Errorf("free space: %w", &os.PathError{Op: "statfs", Path: dir, Err: err})
	}
	b, err := os.ReadFile(filepath.Join(string(proc.Default), "meminfo"))
	if err != nil {
		return nil, fmt.Errorf("free memory: %w", err)
	}
	memory, err := available(b)
	if err != nil {
		return nil, err
	}
	return n.check(room{dir: dir, disk: int64(fs.Bavail) * fs.Bsize, tmpfs: fs.Type == unix.TMPFS_MAGIC, memory: memory}), nil
}

// room is what a host has free.
type room struct {
	dir    string // of images
	disk   int64  // bytes there
	tmpfs  bool   // which are memory
	memory int64  // bytes
}

func (n Needs) check(r room) []Problem {
	var problems []Problem
	if n.Image && n.Memory > r.disk {
		problems = append(problems, Problem{
			Kind: "memory", Object: r.dir, Reason: fmt.Sprintf("the image of %s of memory is gathered there, and %s are free", Size(n.Memory), Size(r.disk)),
			Remedy: "make room there, e.g. mount -o remount,size=SIZE " + r.dir,
		})
	}
	var need int64
	if n.Image && r.tmpfs {
		need = n.Memory
	}
	if n.Processes {
		need += min(n.Memory, math.MaxInt64-need)
	}
	if need > r.memory {
		twice := ""
		if need > n.Memory {
			twice = ", which it needs twice for a moment, once for its image"
		}
		problems = append(problems, Problem{
			Kind: "memory", Object: "of this host", Reason: fmt.Sprintf("the service has %s%s, and %s are available", Size(n.Memory), twice, Size(r.memory)),
			Remedy: "end something else, or add swap",
		})
	}
	return problems
}

// Size is a number of bytes for people, such as "1.5 MiB".
func Size(n int64) string {
	const k = 1024
	if n < k {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n)/k, "KMGTPE"
	for v >= k {
		v, units = v/k, units[1:]
	}
	return fmt.Sprintf("%.1f %ciB", v, units[0])
}

// available reads from /proc/meminfo how much memory programs can still get.
func available(b []byte) (int64, error) {
	total, found := int64(0), false
	for line := range bytes.Lines(b) {
		key, rest, _ := bytes.Cut(line, []byte(":"))
		if name := string(key); name == "MemAvailable" || name == "SwapFree" {
			n, err := kilobytes(rest)
			if err != nil {
				return 0, fmt.Errorf("meminfo: %w", err)
			}
			total, found = total+n, true
		}
	}
	if !found {
		return 0, errors.New("meminfo: it does not say how much memory is available")
	}
	return total, nil
}

// kilobytes reads "  123 kB" as bytes.
func kilobytes(b []byte) (int64, error) {
	fields := bytes.Fields(b)
	if len(fields) != 2 || string(fields[1]) != "kB" {
		return 0, fmt.Errorf("%w value %q", proc.ErrMalformed, b)
	}
	n, err := strconv.ParseInt(string(fields[0]), 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/2048 {
		return 0, fmt.Errorf("%w value %q", proc.ErrMalformed, b)
	}
	return n << 10, nil
}

// checkRoom measures the service's memory, and compares it with what this host has free for its image. Of one that goes
// elsewhere at once there is next to nothing here.
func (s *Service) checkRoom(trees []proc.Tree) (memory int64, problems []Problem, err error) {
	if memory, err = memoryOf(trees); err == nil {
		problems, err = CheckRoom(Needs{Memory: memory, WorkDir: s.opts.WorkDir, Image: s.opts.Pages == nil})
	}
	if err != nil {
		return 0, nil, fmt.Errorf("dump: %w", err)
	}
	return memory, problems, nil
}

// memoryOf returns how many bytes trees have in memory that no file holds: what their images will have. Pages that
// processes share count once.
func memoryOf(trees []proc.Tree) (int64, error) {
	var sum int64
	for i := range trees {
		for j := range trees[i].Processes {
			p := &trees[i].Processes[j]
			b, err := os.ReadFile(filepath.Join(string(proc.Default), strconv.Itoa(p.PID), "smaps_rollup"))
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
				continue // ended, or a zombie; or a kernel that doesn't tell: then nobody can compare
			}
			if err != nil {
				return 0, fmt.Errorf("memory of process %d: %w", p.PID, err)
			}
			n, err := ownMemory(b)
			if err != nil {
				return 0, fmt.Errorf("memory of process %d: %w", p.PID, err)
			}
			sum += n
		}
	}
	return sum, nil
}

// ownMemory reads from /proc/PID/smaps_rollup the process's share of memory without files.
func ownMemory(b []byte) (int64, error) {
	var sum int64
	for line := range bytes.Lines(b) {
		key, rest, _ := bytes.Cut(line, []byte(":"))
		switch string(key) {
		case "Pss_Anon", "Pss_Shmem", "SwapPss":
			n, err := kilobytes(rest)
			if err != nil {
				return 0, err
			}
			sum += n
		}
	}
	return sum, nil
}
