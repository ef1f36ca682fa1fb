package blackout

import "testing"

func TestCellText(t *testing.T) {
	for text, want := range map[string]string{
		"install: no | here\nmore": "install: no \\| here",
		"restore: $ criu restore\nError (criu/util.c:1): rlimit: Can't setup\n 12: Error (criu/cr-restore.c:1237): Can't fork for 7: File exists\n": "criu: Can't fork for 7: File exists",
	} {
		if got := cellText(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
