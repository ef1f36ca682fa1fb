package proc

import "golang.org/x/sys/unix"

// syscallInstruction is `svc #0`.
var syscallInstruction = [...]byte{0x01, 0x00, 0x00, 0xd4}

// regset is NT_PRSTATUS of linux/elf.h.
const regset = 1

type registers struct{ unix.PtraceRegsArm64 }

func (r *registers) read(pid int) error {
	return unix.PtraceGetRegSetArm64(pid, regset, &r.PtraceRegsArm64)
}

func (r *registers) write(pid int) error {
	return unix.PtraceSetRegSetArm64(pid, regset, &r.PtraceRegsArm64)
}
func (r *registers) pc() uintptr { return uintptr(r.Pc) }
func (r *registers) result() int { return int(int64(r.Regs[0])) }

// prepare sets up a system call without arguments.
func (r *registers) prepare(call uint64) { r.Regs[8] = call }
