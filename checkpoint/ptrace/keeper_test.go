package ptrace_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/checkpoint/ptrace"
)

// A pipe whose only writer was killed ends when its keeper does, not before; a file that was opened after the keeper
// began is kept as well, and the process itself goes on as if nothing had been.
func TestKeepFiles(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("sh", "-c", "read a; exec 5>&3 3>&-; echo $a >&5; read b")
	cmd.ExtraFiles = []*os.File{w}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	const files = 500
	keeper, err := ptrace.KeepFiles(cmd.Process.Pid, files)
	if err != nil {
		t.Fatal(err)
	}
	defer keeper.Close()
	if size := tableSize(t, cmd.Process.Pid); size < files {
		t.Errorf("the process has room for %d files", size)
	}
	fmt.Fprintln(in, "hello")
	b := make([]byte, 100)
	if n, err := r.Read(b); err != nil || string(b[:n]) != "hello\n" {
		t.Fatalf("read %q, %v", b[:n], err)
	}
	if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid)); !bytes.HasPrefix(line, []byte("sh\x00-c")) {
		t.Errorf("the process is now called %q", line)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if err := r.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("with the writer dead and its file kept: read %d bytes, %v", n, err)
	}
	if err := r.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := keeper.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(b); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("after the keeper ended: read %d bytes, %v", n, err)
	}
	if err := keeper.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
}

// tableSize is how many files a process can have open before its table of them has to grow.
func tableSize(t *testing.T, pid int) (size int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := bytes.Cut(status, []byte("FDSize:"))
	if _, err := fmt.Sscan(string(after), &size); err != nil {
		t.Fatal(err)
	}
	return size
}
