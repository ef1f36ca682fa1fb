package ptrace

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// syscallInstruction is `syscall`.
var syscallInstruction = [...]byte{0x0f, 0x05}

// registers are those of NT_PRSTATUS, user_regs_struct of sys/user.h.
type registers struct{ unix.PtraceRegs }

func (r *registers) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&r.PtraceRegs)), unsafe.Sizeof(r.PtraceRegs))
}
func (r *registers) pc() uintptr { return uintptr(r.Rip) }
func (r *registers) result() int { return int(int64(r.Rax)) }

// call is the number of the system call that a thread which stopped at one is in.
func (r *registers) call() uint64 { return r.Orig_rax }

// prepare sets up a system call. The interrupted one, if there is one, is not to be restarted now.
func (r *registers) prepare(call uint64, args [5]uint64) {
	r.Rax, r.Orig_rax = call, ^uint64(0)
	r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8 = args[0], args[1], args[2], args[3], args[4]
}

// debugControl is the offset of u_debugreg[7] in struct user of sys/user.h.
const debugControl = 848 + 7*8

// clearBreakpoints takes the hardware breakpoints off a thread.
func clearBreakpoints(tid int) error {
	return request(unix.PTRACE_POKEUSR, tid, debugControl, nil)
}
