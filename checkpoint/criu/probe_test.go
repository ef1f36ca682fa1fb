package criu

import (
	"context"
	"strings"
	"testing"
)

func TestCheckReason(t *testing.T) {
	for _, tt := range []struct{ out, want string }{
		{"Warn  (criu/kerndat.c:1): CRIU kerndat cache is missing\nError (criu/cr-check.c:7): Dirty tracking is OFF. Memory snapshot will not work.\n", "Dirty tracking is OFF. Memory snapshot will not work"},
		{"Error (a.c:1): one\nError (b.c:2): two\n", "one; two"},
		{"Warn  (a.c:1): soft\nLooks bad.\n", "soft"},
		{"Looks bad.\n", "Looks bad"},
		{"", "criu check failed without a word"},
	} {
		if got := checkReason(tt.out); got != tt.want {
			t.Errorf("checkReason(%q) = %q, want %q", tt.out, got, tt.want)
		}
	}
}

func TestCheck(t *testing.T) {
	ctx := context.Background()
	if err := Check(ctx, script(t, `[ "$*" = check ] && echo Looks good.`)); err != nil {
		t.Errorf("Check = %v", err)
	}
	path := script(t, `[ "$*" = "check --feature uffd-noncoop" ] && exit 0; echo "Error (x.c:1): no" >&2; exit 1`)
	if err := CheckFeature(ctx, path, "uffd-noncoop"); err != nil {
		t.Errorf("CheckFeature(uffd-noncoop) = %v", err)
	}
	if err := CheckFeature(ctx, path, "mem_dirty_track"); err == nil || err.Error() != "no" {
		t.Errorf("CheckFeature(mem_dirty_track) = %v, want criu's own words", err)
	}
	if err := Check(ctx, path+"-missing"); err == nil || !strings.Contains(err.Error(), "-missing") {
		t.Errorf("Check of a missing program = %v, want its name", err)
	}
}
