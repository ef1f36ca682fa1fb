package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

var privilegeProbes = []probe{
	{
		name: "root", needed: true, run: probeRoot,
		remedy: "run nsmigrate as root (sudo), outside of containers that take privileges away",
	},
	{
		name: "other-users", run: probeSysResource,
		lack:   "processes of users other than root can't be dumped here, because their limits can't be read or set",
		remedy: "give CAP_SYS_RESOURCE to root (a container or a cloud sandbox has taken it away), or run the service as root",
	},
	{
		name: "ptrace", needed: true, run: probePtrace,
		lack:   "even root may not attach to a process",
		remedy: "sysctl kernel.yama.ptrace_scope=1; the value 3 can only be changed by a reboot without it",
	},
}

// neededCaps are the capabilities without which CRIU or we fail at once.
var neededCaps = []struct {
	name string
	bit  int
}{
	{"CAP_CHECKPOINT_RESTORE", unix.CAP_CHECKPOINT_RESTORE},
	{"CAP_DAC_OVERRIDE", unix.CAP_DAC_OVERRIDE},
	{"CAP_KILL", unix.CAP_KILL},
	{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN},
	{"CAP_NET_RAW", unix.CAP_NET_RAW},
	{"CAP_SETGID", unix.CAP_SETGID},
	{"CAP_SETUID", unix.CAP_SETUID},
	{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN},
	{"CAP_SYS_PTRACE", unix.CAP_SYS_PTRACE},
}

func probeRoot(context.Context) (string, error) {
	if uid := os.Geteuid(); uid != 0 {
		return "", fmt.Errorf("running as user id %d", uid)
	}
	caps, err := effectiveCaps()
	if err != nil {
		return "", err
	}
	var missing []string
	for _, c := range neededCaps {
		if caps&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	if missing != nil {
		return "", errors.New("root lacks " + strings.Join(missing, ", "))
	}
	return "with the capabilities that are needed", nil
}

func probeSysResource(context.Context) (string, error) {
	caps, err := effectiveCaps()
	if err != nil {
		return "", err
	}
	if caps&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		return "", errors.New("CAP_SYS_RESOURCE is missing")
	}
	return "processes of every user can be dumped", nil
}

// effectiveCaps reads the capability mask of this process (proc_pid_status(5)).
func effectiveCaps() (uint64, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if mask, ok := strings.CutPrefix(lines.Text(), "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
		}
	}
	return 0, errors.New("no CapEff in /proc/self/status")
}

func probePtrace(context.Context) (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	if errors.Is(err, os.ErrNotExist) {
		return "not restricted", nil
	}
	if err != nil {
		return "", err
	}
	scope := strings.TrimSpace(string(b))
	if scope == "3" {
		return "", errors.New("kernel.yama.ptrace_scope is 3")
	}
	return "kernel.yama.ptrace_scope is " + scope, nil
}
