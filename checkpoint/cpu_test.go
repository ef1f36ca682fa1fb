package checkpoint

import (
	"slices"
	"strings"
	"testing"
)

func TestCPUInfo(t *testing.T) {
	for _, tt := range []struct{ name, arch, text, want string }{
		{"x86", "amd64", "processor\t: 0\nflags\t\t: fpu vme sse2 md_clear avx2\nvmx flags\t: ept\n", "avx2 fpu sse2"},
		{"processors that differ", "amd64", "flags : fpu avx avx512f\n\nflags : fpu avx2 avx\n\nflags : fpu avx avx512f\n", "avx fpu"},
		{"arm", "arm64", "processor\t: 0\nFeatures\t: fp asimd evtstrm aes atomics cpuid sve\nCPU implementer\t: 0x41\n", "aes asimd atomics fp sve"},
		{"another", "s390x", "features\t: esan3 zarch\n", ""},
		{"nothing", "amd64", "", ""},
	} {
		if got := strings.Join(parseCPUInfo(tt.text, tt.arch), " "); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestCheckCPU(t *testing.T) {
	have := []string{"avx", "avx2", "fpu"}
	for _, had := range [][]string{nil, {"fpu"}, have} {
		if p := compareCPU(had, have); len(p) > 0 {
			t.Errorf("%v: %v", had, p)
		}
	}
	p := compareCPU([]string{"amx_tile", "avx", "avx512f", "fpu"}, have)
	if len(p) != 1 || !p[0].Loss || !strings.HasSuffix(p[0].Reason, ": amx_tile avx512f") {
		t.Errorf("%+v", p)
	}
	own, err := CPUFeatures()
	if err != nil {
		t.Fatal(err)
	}
	if p, err := CheckCPU(own); err != nil || len(p) > 0 || !slices.IsSorted(own) {
		t.Errorf("this host has %v and lacks some of it: %v, %v", own, p, err)
	}
}

func FuzzCPUInfo(f *testing.F) {
	f.Add("flags : fpu avx\n\nflags : fpu\n", "amd64")
	f.Add("Features : fp\n", "arm64")
	f.Fuzz(func(t *testing.T, text, arch string) {
		if got := parseCPUInfo(text, arch); !slices.IsSorted(got) || slices.Contains(got, "") {
			t.Errorf("%q", got)
		}
	})
}
