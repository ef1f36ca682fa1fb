package main

import (
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/transfer/migrate"
)

func TestShowFiles(t *testing.T) {
	many := strings.Fields("/a /b /c /d /e /f /g /h /i /j /k /l")
	for _, tt := range []struct {
		f           *migrate.FilesReport
		moved, list bool
		want        string
	}{
		{nil, true, true, ""},
		{&migrate.FilesReport{}, true, true, ""},
		{
			&migrate.FilesReport{Paths: []string{"/log"}, Files: 1, Bytes: 2048, Lacked: 10},
			false, true, "1 file would travel along, 2.0 KiB, of which the destination lacks 10 B\n  /log\n",
		},
		{
			&migrate.FilesReport{Paths: []string{"/log"}, Shared: 2}, true, false,
			"no file travelled along; 2 are on storage that both hosts see\n",
		},
		{
			&migrate.FilesReport{Paths: many, Files: 12, Replaced: 1, Removed: 11, Examples: many[:10]}, false, true,
			"12 files would travel along, 0 B, of which the destination lacks 0 B; 1 different one over there would be replaced; " +
				"11 that only the destination had would be removed\n" +
				"  /a\n  /b\n  /c\n  /d\n  /e\n  /f\n  /g\n  /h\n  /i\n  /j\n  and 2 more\n" +
				"  would be removed: /a\n  would be removed: /b\n  would be removed: /c\n  would be removed: /d\n" +
				"  would be removed: /e\n  would be removed: /f\n  would be removed: /g\n  would be removed: /h\n" +
				"  would be removed: /i\n  would be removed: /j\n  would be removed: and 1 more\n",
		},
		{
			&migrate.FilesReport{Paths: many[:1], Files: 1, Bytes: 5, Sent: 7, SentFrozen: 2, Replaced: 2}, true, false,
			"1 file travelled along, 5 B: 7 B sent, 2 B of it while the service stood still; 2 different ones over there replaced\n",
		},
	} {
		var b strings.Builder
		showFiles(&b, tt.f, tt.moved, tt.list)
		if b.String() != tt.want {
			t.Errorf("%+v:\ngot  %q\nwant %q", tt.f, b.String(), tt.want)
		}
	}
}
