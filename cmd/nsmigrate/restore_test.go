package main

import (
	"cmp"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nsmigrate/nsmigrate/netstate"
	"github.com/nsmigrate/nsmigrate/restore"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

func TestParseRestore(t *testing.T) {
	t.Setenv("NSMIGRATE_STATE_DIR", journal.DefaultPath)
	zero := restore.Options{PIDNS: restore.PIDNSAuto, Timeout: defaultTimeout}
	for _, tt := range []struct {
		args string
		want restoreRequest
	}{
		{"-i svc.nsm", restoreRequest{source: source{file: "svc.nsm"}, opts: zero}},
		{"-i -", restoreRequest{source: source{stdin: true}, opts: zero}},
		{
			"-D images --netns web --uplink eth0=veth-web@br1 --uplink eth1=@br2 --uplink mv0=enp3s0 --pidfile p --pidns new --tcp-close --force --wait --print-stats --timeout 9s --criu c --state-dir /srv/state",
			restoreRequest{
				source: source{dir: "images"},
				opts: restore.Options{
					CRIU: "c", NetNS: "web", PIDFile: "p", PIDNS: restore.PIDNSNew, TCPClose: true, Force: true, Wait: true, Timeout: 9 * time.Second,
					Uplinks: map[string]netstate.UplinkTarget{
						"eth0": {Peer: "veth-web", Bridge: "br1"}, "eth1": {Bridge: "br2"}, "mv0": {Peer: "enp3s0"},
					},
				},
				stats: true, stateDir: "/srv/state",
			},
		},
	} {
		tt.want.stateDir = cmp.Or(tt.want.stateDir, journal.DefaultPath)
		got, err := parsed(t, restoreFlags(), parseRestore, tt.args)
		if err != nil || !reflect.DeepEqual(*got, tt.want) {
			t.Errorf("restore %s: %+v, %v; want %+v", tt.args, got, err, tt.want)
		}
	}

	for args, want := range map[string]string{
		"":                                     "an image is missing",
		"-i=":                                  "name is empty",
		"-i svc.nsm -D images":                 "exclude each other",
		"-i svc.nsm --pidns mine":              "want auto, host or new",
		"-i svc.nsm --uplink eth0":             "not understood",
		"-i svc.nsm --uplink =v":               "not understood",
		"-i svc.nsm --uplink eth0=":            "not understood",
		"-i svc.nsm --uplink eth0=v@":          "not understood",
		"-i svc.nsm --uplink eth0=v@a@b":       "not understood",
		"-i svc.nsm --uplink e=a --uplink e=b": "given twice",
		"-i svc.nsm --netns /run/netns/svc":    "can't name",
		"-i svc.nsm --netns=":                  "can't name",
		"-i svc.nsm --timeout -1s":             "too short",
		"-i svc.nsm --wait --dry-run":          "exclude each other",
	} {
		_, err := parsed(t, restoreFlags(), parseRestore, args)
		var usage *usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("restore %s: %v, want a usage error with %q", args, err, want)
		}
	}
}
