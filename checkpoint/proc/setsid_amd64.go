package proc

import "golang.org/x/sys/unix"

// syscallInstruction is `syscall`.
var syscallInstruction = [...]byte{0x0f, 0x05}

type registers struct{ unix.PtraceRegs }

func (r *registers) read(pid int) error  { return unix.PtraceGetRegs(pid, &r.PtraceRegs) }
func (r *registers) write(pid int) error { return unix.PtraceSetRegs(pid, &r.PtraceRegs) }
func (r *registers) pc() uintptr         { return uintptr(r.Rip) }
func (r *registers) result() int         { return int(int64(r.Rax)) }

// prepare sets up a system call without arguments. The interrupted call, if there is one, is not to be restarted now.
func (r *registers) prepare(call uint64) {
	r.Rax, r.Orig_rax = call, ^uint64(0)
}
