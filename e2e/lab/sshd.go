package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// SSHD starts a real sshd on the host, which lets root of the other hosts in by a key, and returns the options of
// ssh_config(5) that a client needs. It ends with the lab.
func (h *Host) SSHD(ctx context.Context) (options []string, err error) {
	conf, options, err := h.SSHDConfig(ctx, h.IPv4, "SetEnv NSMIGRATE_STATE_DIR="+StateDir)
	if err != nil {
		return nil, err
	}
	if _, err := h.Start(command(ctx, SSHDPath, "-D", "-f", conf)); err != nil {
		return nil, err
	}
	return options, Eventually(ctx, func() error {
		return h.Script(ctx, fmt.Sprintf("ss -tlnH sport = :22 | grep -q %s", h.IPv4))
	})
}

// SSHDPath is the program's full path, which it wants to be called by.
const SSHDPath = "/usr/sbin/sshd"

// SSHDConfig writes the configuration of an sshd for the host that listens at an address and lets root in by a key. It
// returns the file and the options of ssh_config(5) that a client needs.
func (h *Host) SSHDConfig(ctx context.Context, address string, more ...string) (conf string, options []string, err error) {
	dir := filepath.Join(h.shared, "ssh-"+h.Name+"-"+address)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", nil, err
	}
	files := map[string]string{"host": filepath.Join(dir, "host"), "client": filepath.Join(dir, "client")}
	for _, name := range []string{"host", "client"} {
		if err := h.Script(ctx, fmt.Sprintf("ssh-keygen -q -t ed25519 -N '' -f %s", files[name])); err != nil {
			return "", nil, err
		}
	}
	conf = filepath.Join(dir, "sshd_config")
	text := strings.Join(append([]string{
		"ListenAddress " + address, "HostKey " + files["host"], "AuthorizedKeysFile " + files["client"] + ".pub",
		"PermitRootLogin prohibit-password", "StrictModes no", "UsePAM no", "PidFile none",
	}, append(more, "")...), "\n")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return "", nil, err
	}
	if err := h.Script(ctx, "mkdir -p /run/sshd"); err != nil { // an empty directory of its own
		return "", nil, err
	}
	key, err := os.ReadFile(files["host"] + ".pub")
	if err != nil {
		return "", nil, err
	}
	known := filepath.Join(dir, "known_hosts")
	if err := os.WriteFile(known, []byte(address+" "+string(key)), 0o600); err != nil {
		return "", nil, err
	}
	return conf, []string{"IdentityFile=" + files["client"], "IdentitiesOnly=yes", "UserKnownHostsFile=" + known}, nil
}
