package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint/lock"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

var kernelProbes = []probe{
	{
		name: "checkpoint-restore", needed: true, run: probeCheckpointRestore,
		lack:   "processes can't be rebuilt",
		remedy: "use a kernel with CONFIG_CHECKPOINT_RESTORE and CONFIG_KCMP; all kernels of Debian and Ubuntu have them",
	},
	{
		name: "tcp-repair", needed: true, run: probeTCPRepair,
		lack:   "established connections can't be taken or rebuilt",
		remedy: "run as root in the host's user namespace; TCP_REPAIR needs CAP_NET_ADMIN",
	},
	{
		name: "pidfd-getfd", needed: true, run: probePidfdGetfd,
		lack:   "socket options that CRIU loses can't be put back",
		remedy: "use Linux 5.6 or newer, and a seccomp profile that lets pidfd_getfd(2) through",
	},
	{
		name: "namespaces", needed: true, run: probeNamespaces,
		lack:   "a service's surroundings can't be rebuilt",
		remedy: "run as root outside of containers that forbid unshare(2)",
	},
	{
		name: "nftables", needed: true, run: probeNftables,
		lack:   "a frozen service can't be kept mute, so its peers would see resets",
		remedy: "use Linux 5.12 or newer with CONFIG_NF_TABLES_INET and CONFIG_NF_TABLES_ARP (modprobe nf_tables)",
	},
	{
		name: "sock-diag", needed: true, run: probeSockDiag,
		lack:   "CRIU can't list sockets",
		remedy: "modprobe -a inet_diag tcp_diag udp_diag unix_diag netlink_diag af_packet_diag",
	},
	{
		name: "conntrack", run: probeConntrack,
		lack:   "namespaces with NAT or stateful rules lose the state of their flows",
		remedy: "modprobe nf_conntrack_netlink, if namespaces here track connections",
	},
	{
		name: "iptables-legacy", run: probeIptablesLegacy,
		lack:   "namespaces with rules of the old iptables can't be carried",
		remedy: "install the package iptables, if namespaces here use iptables-legacy",
	},
}

// probeCheckpointRestore tries two calls that exist only with CONFIG_CHECKPOINT_RESTORE and CONFIG_KCMP.
func probeCheckpointRestore(context.Context) (string, error) {
	if _, err := os.Stat("/proc/sys/kernel/ns_last_pid"); err != nil {
		return "", errors.New("kernel without CONFIG_CHECKPOINT_RESTORE")
	}
	const kcmpVM = 1 // linux/kcmp.h
	pid := uintptr(os.Getpid())
	if _, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpVM, 0, 0, 0); errno != 0 {
		return "", fmt.Errorf("kcmp: %w", errno)
	}
	return "compiled into the kernel", nil
}

func probeTCPRepair(context.Context) (string, error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if errors.Is(err, unix.EAFNOSUPPORT) && family == unix.AF_INET6 {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("socket: %w", err)
		}
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON)
		unix.Close(fd)
		if err != nil {
			return "", fmt.Errorf("set TCP_REPAIR: %w", err)
		}
	}
	return "settable", nil
}

func probePidfdGetfd(context.Context) (string, error) {
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return "", fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, pidfd, 0)
	if err != nil {
		return "", fmt.Errorf("pidfd_getfd: %w", err)
	}
	unix.Close(fd)
	return "works", nil
}

// probeNamespaces makes one of each kind that restore makes; they end with the thread and the process.
func probeNamespaces(ctx context.Context) (string, error) {
	made, err := ns.Create()
	if err != nil {
		return "", err
	}
	made.Close()
	cmd := exec.CommandContext(ctx, "true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("start a process in new mount and pid namespaces: %w", err)
	}
	return "network, mount and pid namespaces can be made", nil
}

// inThrowaway runs fn with a netlink socket in a network namespace that ends with the call.
func inThrowaway(protocol int, fn func(c *rawnl.Conn) error) error {
	n, err := ns.Create()
	if err != nil {
		return err
	}
	defer n.Close()
	c, err := rawnl.Dial(n, protocol)
	if err != nil {
		return err
	}
	defer c.Close()
	return fn(c)
}

// probeNftables puts our own lock on a namespace that ends with the call.
func probeNftables(ctx context.Context) (string, error) {
	n, err := ns.Create()
	if err != nil {
		return "", err
	}
	defer n.Close()
	l, err := lock.Open(n)
	if err != nil {
		return "", err
	}
	defer l.Close()
	return "a namespace can be locked", l.Hold(ctx)
}

// probeSockDiag asks for the sockets of an empty namespace, once for each module that CRIU's listing needs.
func probeSockDiag(ctx context.Context) (string, error) {
	// struct inet_diag_req_v2, unix_diag_req, netlink_diag_req and packet_diag_req begin with the family
	// and the protocol; zeroes in the rest ask for everything or for nothing more.
	const inetReqLen, otherReqLen = 56, 24
	kinds := []struct {
		name             string
		family, protocol byte
		length           int
	}{
		{"tcp", unix.AF_INET, unix.IPPROTO_TCP, inetReqLen},
		{"udp", unix.AF_INET, unix.IPPROTO_UDP, inetReqLen},
		{"unix", unix.AF_UNIX, 0, otherReqLen},
		{"netlink", unix.AF_NETLINK, 0xff, otherReqLen + 8},
		{"packet", unix.AF_PACKET, 0, otherReqLen - 4},
	}
	var missing, names []string
	err := inThrowaway(unix.NETLINK_SOCK_DIAG, func(c *rawnl.Conn) error {
		for _, k := range kinds {
			req := make([]byte, k.length)
			req[0], req[1] = k.family, k.protocol
			if k.length == inetReqLen {
				binary.NativeEndian.PutUint32(req[4:], ^uint32(0)) // idiag_states
			}
			_, err := c.Dump(ctx, rawnl.Message{Type: unix.SOCK_DIAG_BY_FAMILY, Data: req})
			if err != nil {
				missing = append(missing, fmt.Sprintf("%s (%v)", k.name, err))
			}
			names = append(names, k.name)
		}
		return nil
	})
	if err == nil && missing != nil {
		err = errors.New("sock_diag lacks " + strings.Join(missing, ", "))
	}
	return strings.Join(names, ", "), err
}

func probeConntrack(ctx context.Context) (string, error) {
	const ctMsgGet = 1 // IPCTNL_MSG_CT_GET
	err := inThrowaway(unix.NETLINK_NETFILTER, func(c *rawnl.Conn) error {
		_, err := c.Dump(ctx, rawnl.Message{
			Type: unix.NFNL_SUBSYS_CTNETLINK<<8 | ctMsgGet,
			Data: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
		})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("ctnetlink: %w", err)
	}
	return "flows can be listed", nil
}

// probeIptablesLegacy looks for the tools only where the kernel has the old tables at all.
func probeIptablesLegacy(context.Context) (string, error) {
	if _, err := os.Stat("/proc/net/ip_tables_names"); err != nil {
		return "not needed: the kernel has no tables of the old iptables", nil
	}
	for _, tool := range []string{"iptables-legacy-save", "iptables-legacy-restore"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", errors.New(tool + " is not on PATH")
		}
	}
	return "found", nil
}
