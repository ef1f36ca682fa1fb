package ptrace

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// syscallInstruction is `svc #0`.
var syscallInstruction = [...]byte{0x01, 0x00, 0x00, 0xd4}

// registers are those of NT_PRSTATUS, user_pt_regs of asm/ptrace.h.
type registers struct{ unix.PtraceRegsArm64 }

func (r *registers) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&r.PtraceRegsArm64)), unsafe.Sizeof(r.PtraceRegsArm64))
}
func (r *registers) pc() uintptr { return uintptr(r.Pc) }
func (r *registers) result() int { return int(int64(r.Regs[0])) }

// call is the number of the system call that a thread which stopped at one is in.
func (r *registers) call() uint64 { return r.Regs[8] }

// prepare sets up a system call.
func (r *registers) prepare(call uint64, args [5]uint64) {
	r.Regs[8] = call
	copy(r.Regs[:5], args[:])
}

// ntARMHWBreak is NT_ARM_HW_BREAK of linux/elf.h.
const ntARMHWBreak = 0x402

// clearBreakpoints takes the hardware breakpoint that CRIU uses, the first, off a thread: user_hwdebug_state of
// asm/ptrace.h with one register that is off.
func clearBreakpoints(tid int) error {
	var state [8 + 16]byte
	return setRegset(tid, ntARMHWBreak, state[:])
}
