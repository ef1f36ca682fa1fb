package netfilter

import (
	"bytes"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
)

// EBTables returns the tables of the legacy ebtables that have rules, chains or policies of somebody in a namespace. Those
// of ebtables-nft are tables of nftables. Like ebtables(8) itself it makes the kernel set up the empty tables of the
// modules that are loaded.
func EBTables(n *ns.NS) ([]string, error) {
	var loaded, tables []string
	for _, table := range []string{"filter", "nat", "broute"} {
		if answers("ebtable_" + table) {
			loaded = append(loaded, table)
		}
	}
	if len(loaded) == 0 {
		return nil, nil
	}
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, table := range loaded {
			if altered(fd, table) {
				tables = append(tables, table)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for ebtables: %w", err)
	}
	return tables, nil
}

// Options of linux/netfilter_bridge/ebtables.h: a table's sizes and entries, and those that it had at first.
const (
	ebtGetInfo        = 128
	ebtGetEntries     = 129
	ebtGetInitInfo    = 130
	ebtGetInitEntries = 131
)

// ebtReplace is struct ebt_replace.
type ebtReplace struct {
	name              [32]byte
	hooks             uint32
	entries           uint32
	size              uint32 // of the entries
	hookEntries       [6]uintptr
	counters          uint32
	counterList, list unsafe.Pointer
}

// altered reports whether a table, if the kernel has it, is another than it was at first.
func altered(fd int, table string) bool {
	now, err := entries(fd, table, ebtGetInfo, ebtGetEntries)
	if now == nil {
		return false
	}
	first, errFirst := entries(fd, table, ebtGetInitInfo, ebtGetInitEntries)
	return err != nil || errFirst != nil || !bytes.Equal(now, first)
}

// entries returns what is in a table: its chains, their policies and rules. It is nil if there is no such table.
func entries(fd int, table string, infoOption, option uintptr) ([]byte, error) {
	var info ebtReplace
	copy(info.name[:len(info.name)-1], table)
	if err := getsockopt(fd, infoOption, &info, 0); err != nil {
		return nil, err
	}
	buf := make([]byte, info.size+1)
	return buf, getsockopt(fd, option, &ebtReplace{name: info.name, entries: info.entries, size: info.size, list: unsafe.Pointer(&buf[0])}, info.size)
}

// getsockopt counts the entries, which are elsewhere, as part of the option, as the kernel does.
func getsockopt(fd int, option uintptr, r *ebtReplace, size uint32) error {
	size += uint32(unsafe.Sizeof(*r))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_IP, option, uintptr(unsafe.Pointer(r)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
