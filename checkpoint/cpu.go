package checkpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

// x86Features are the features of x86 processors that programs use by themselves, as /proc/cpuinfo names them: they
// choose their code by them when they start, or have registers of theirs. These are the ones that CRIU compares with
// --cpu-cap=fpu,ins, without those that no program misses (faster copies, prefetches, HLE), and what
// newer processors have as far as the kernel shows it.
const x86Features = `
	fpu tsc cx8 sep cmov clflush mmx fxsr sse sse2 syscall mmxext fxsr_opt rdtscp 3dnowext 3dnow pni pclmulqdq ssse3
	fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand lahf_lm abm sse4a misalignsse xop fma4 tbm fsgsbase
	bmi1 avx2 bmi2 rtm mpx avx512f avx512dq rdseed adx clflushopt clwb avx512pf avx512er avx512cd sha_ni avx512bw
	avx512vl avx512ifma xsaveopt xsavec xgetbv1 xsaves avx512vbmi avx512_vbmi2 gfni vaes vpclmulqdq avx512_vnni
	avx512_bitalg avx512_vpopcntdq avx512_vp2intersect avx512_bf16 avx512_fp16 rdpid clzero avx512_4vnniw
	avx512_4fmaps avx_vnni amx_tile amx_int8 amx_bf16 pku ospke movdiri movdir64b waitpkg serialize enqcmd`

// CPUFeatures returns what the processors of this host have that programs depend on, sorted; nothing for a kind of
// processor of which that is not known.
func CPUFeatures() ([]string, error) {
	b, err := os.ReadFile(filepath.Join(string(proc.Default), "cpuinfo"))
	if err != nil {
		return nil, fmt.Errorf("read the processor's features: %w", err)
	}
	return parseCPUInfo(string(b), runtime.GOARCH), nil
}

// parseCPUInfo reads /proc/cpuinfo. What one of the processors lacks, the host lacks.
func parseCPUInfo(text, arch string) []string {
	known := strings.Fields(x86Features)
	means := func(f string) bool { return slices.Contains(known, f) }
	key := "flags"
	if arch == "arm64" {
		// The kernel shows what it offers to programs, and these two: by registers that it emulates, or not at all.
		key, means = "Features", func(f string) bool { return f != "cpuid" && f != "evtstrm" }
	}
	var all []string
	seen := make(map[string]bool) // processors are mostly alike
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(name) != key || seen[value] {
			continue
		}
		has := slices.DeleteFunc(strings.Fields(value), func(f string) bool { return !means(f) })
		if len(seen) > 0 {
			has = slices.DeleteFunc(has, func(f string) bool { return !slices.Contains(all, f) })
		}
		all, seen[value] = has, true
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// CheckCPU compares what the processors of an image's host had with what those of this host have.
func CheckCPU(had []string) ([]Problem, error) {
	have, err := CPUFeatures()
	if err != nil {
		return nil, err
	}
	return compareCPU(had, have), nil
}

func compareCPU(had, have []string) []Problem {
	lacks := slices.DeleteFunc(slices.Clone(had), func(f string) bool { return slices.Contains(have, f) })
	if len(lacks) == 0 {
		return nil
	}
	return []Problem{{
		Kind: "cpu", Object: "of this host", Loss: true,
		Reason: "it lacks what programs may have found on the source, and would die without: " + strings.Join(lacks, " "),
		Remedy: "move the service to a host whose processor has all that the source's has, or start it with less (GLIBC_TUNABLES=glibc.cpu.hwcaps=..., a virtual machine's CPU model)",
	}}
}
