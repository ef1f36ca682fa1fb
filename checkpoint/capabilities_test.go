package checkpoint

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

func TestCheckCapabilities(t *testing.T) {
	self := &proc.Process{Permitted: 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_CHOWN}
	trees := []Tree{
		{Command: []string{"fits"}, Capabilities: 1 << unix.CAP_CHOWN},
		{Command: []string{"more"}, Capabilities: 1<<unix.CAP_CHOWN | 1<<unix.CAP_SYS_TIME | 1<<unix.CAP_BPF},
		{Command: []string{"none"}},
	}
	got := CheckCapabilities(self, trees)
	if len(got) != 1 || got[0].Object != "CAP_SYS_TIME CAP_BPF" {
		t.Errorf("problems: %v", got)
	}
}
