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
	dir := filepath.Join(h.shared, "ssh-"+h.Name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	files := map[string]string{"host": filepath.Join(dir, "host"), "client": filepath.Join(dir, "client")}
	for _, name := range []string{"host", "client"} {
		if err := h.Script(ctx, fmt.Sprintf("ssh-keygen -q -t ed25519 -N '' -f %s", files[name])); err != nil {
			return nil, err
		}
	}
	conf := filepath.Join(dir, "sshd_config")
	text := strings.Join([]string{
		"ListenAddress " + h.IPv4, "HostKey " + files["host"], "AuthorizedKeysFile " + files["client"] + ".pub",
		"PermitRootLogin prohibit-password", "StrictModes no", "UsePAM no", "PidFile none",
		"SetEnv NSMIGRATE_STATE_DIR=" + StateDir, "",
	}, "\n")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	// sshd wants its full path, and an empty directory of its own.
	if err := h.Script(ctx, "mkdir -p /run/sshd"); err != nil {
		return nil, err
	}
	if _, err := h.Start(command(ctx, "/usr/sbin/sshd", "-D", "-f", conf)); err != nil {
		return nil, err
	}
	key, err := os.ReadFile(files["host"] + ".pub")
	if err != nil {
		return nil, err
	}
	known := filepath.Join(dir, "known_hosts")
	if err := os.WriteFile(known, []byte(h.IPv4+" "+string(key)), 0o600); err != nil {
		return nil, err
	}
	err = Eventually(ctx, func() error {
		return h.Script(ctx, fmt.Sprintf("ss -tlnH sport = :22 | grep -q %s", h.IPv4))
	})
	return []string{"IdentityFile=" + files["client"], "IdentitiesOnly=yes", "UserKnownHostsFile=" + known}, err
}
