package main

import (
	"cmp"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// parsed runs a parser on arguments as the command line hands them over.
func parsed[T any](t *testing.T, flags []cli.Flag, parse func(*cli.Context) (T, error), args string) (got T, err error) {
	t.Helper()
	app := &cli.App{
		Flags: flags, Writer: io.Discard, ErrWriter: io.Discard,
		ExitErrHandler: func(*cli.Context, error) {},
		Action: func(c *cli.Context) (err error) {
			got, err = parse(c)
			return err
		},
	}
	err = app.Run(append([]string{"nsmigrate"}, strings.Fields(args)...))
	return got, err
}

func TestParseDump(t *testing.T) {
	t.Setenv("NSMIGRATE_STATE_DIR", journal.DefaultPath)
	zero := checkpoint.Options{Timeout: defaultTimeout}
	for _, tt := range []struct {
		args string
		want dumpRequest
	}{
		{"--netns svc -e svc.nsm", dumpRequest{spec: checkpoint.Spec{NetNS: "svc"}, opts: zero, dest: destination{file: "svc.nsm", compress: true}}},
		{"--netns svc -e - -c none", dumpRequest{spec: checkpoint.Spec{NetNS: "svc"}, opts: zero, dest: destination{stdout: true}}},
		{"-t 17 -D images", dumpRequest{spec: checkpoint.Spec{PID: 17}, opts: zero, dest: destination{dir: "images", compress: true}}},
		{"-t 17 --dry-run", dumpRequest{spec: checkpoint.Spec{PID: 17}, opts: checkpoint.Options{DryRun: true, Timeout: defaultTimeout}, dest: destination{compress: true}}},
		{
			"--netns svc -D images -R --tcp-close --allow-loss qdisc,link --allow-loss nft --timeout 5s --criu ./criu --print-stats --state-dir /srv/state",
			dumpRequest{
				spec: checkpoint.Spec{NetNS: "svc"},
				opts: checkpoint.Options{CRIU: "./criu", LeaveRunning: true, TCPClose: true, AllowLoss: []string{"qdisc", "link", "nft"}, Timeout: 5 * time.Second},
				dest: destination{dir: "images", compress: true}, stats: true, stateDir: "/srv/state",
			},
		},
	} {
		tt.want.stateDir = cmp.Or(tt.want.stateDir, journal.DefaultPath)
		got, err := parsed(t, dumpFlags(), parseDump, tt.args)
		if err != nil || !reflect.DeepEqual(*got, tt.want) {
			t.Errorf("dump %s: %+v, %v; want %+v", tt.args, got, err, tt.want)
		}
	}

	for args, want := range map[string]string{
		"-e svc.nsm":                               "what to dump is missing",
		"--netns svc":                              "where to write the image is missing",
		"--netns svc --tree 1 -e svc.nsm":          "exclude each other",
		"--netns svc -e svc.nsm -D images":         "exclude each other",
		"--netns= -e svc.nsm":                      "name is empty",
		"--netns svc -e=":                          "name is empty",
		"--tree 0 -e svc.nsm":                      "no process id",
		"--tree -3 -e svc.nsm":                     "no process id",
		"--netns svc -e svc.nsm -c lz4":            "unknown method",
		"--netns svc -D images -c zstd":            "not compressed",
		"--netns svc -e svc.nsm --timeout 0s":      "too short",
		"--netns svc -e svc.nsm -D i --dry-run":    "exclude each other",
		"--netns svc --tree 3 -D images --dry-run": "exclude each other",
	} {
		_, err := parsed(t, dumpFlags(), parseDump, args)
		var usage *usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("dump %s: %v, want a usage error with %q", args, err, want)
		}
	}
}

func TestDestinationCheck(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, d := range []destination{{}, {stdout: true}, {dir: empty}, {dir: filepath.Join(dir, "new")}, {file: filepath.Join(dir, "new")}} {
		if err := d.check(); err != nil {
			t.Errorf("check(%+v) = %v", d, err)
		}
	}
	for want, d := range map[string]destination{
		"not empty":       {dir: dir},
		"the file exists": {file: file},
		"no such file":    {file: filepath.Join(dir, "no", "where")},
		"not a directory": {dir: filepath.Join(file, "images")},
	} {
		err := d.check()
		var refused *checkpoint.RefusedError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), want) {
			t.Errorf("check(%+v) = %v, want a refusal with %q", d, err, want)
		}
	}
}
