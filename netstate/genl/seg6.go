package genl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// linux/seg6_genl.h.
const (
	seg6SetHMAC   = 1
	seg6DumpHMAC  = 2
	seg6SetSource = 3 // SEG6_CMD_SET_TUNSRC
	seg6GetSource = 4

	seg6AttrDst       = 1
	seg6AttrKeyID     = 3
	seg6AttrSecret    = 4
	seg6AttrSecretLen = 5
	seg6AttrAlgorithm = 6
)

// seg6 carries the HMAC keys of IPv6 segment routing and the source address of its tunnels.
func seg6() family {
	return family{
		number: familySEG6, name: "SEG6", word: "seg6", capture: captureSEG6, describe: describeSEG6,
		nests: map[byte]rawnl.Nest{seg6SetHMAC: rawnl.Flat(), seg6SetSource: rawnl.Flat()},
	}
}

func captureSEG6(ctx context.Context, c conn) ([]rawnl.Message, error) {
	var msgs []rawnl.Message
	sources, err := c.request(ctx, seg6GetSource)
	if err != nil {
		return nil, fmt.Errorf("get tunnel source: %w", err)
	}
	for _, attrs := range sources {
		if addr, ok := netip.AddrFromSlice(rawnl.Get(attrs, seg6AttrDst)); ok && !addr.IsUnspecified() {
			msgs = append(msgs, c.message(seg6SetSource, only(attrs, seg6AttrDst)))
		}
	}
	keys, err := c.dump(ctx, seg6DumpHMAC)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // a kernel without CONFIG_IPV6_SEG6_HMAC
		return nil, fmt.Errorf("dump HMAC keys: %w", err)
	}
	slices.SortFunc(keys, bytes.Compare) // the kernel shows them in the order of a hash table
	for _, attrs := range keys {
		msgs = append(msgs, c.message(seg6SetHMAC, only(attrs, seg6AttrKeyID, seg6AttrSecret, seg6AttrSecretLen, seg6AttrAlgorithm)))
	}
	return msgs, nil
}

func describeSEG6(m rawnl.Message, _ func(int32) string) string {
	if commandOf(m) == seg6SetSource {
		addr, _ := netip.AddrFromSlice(rawnl.Get(attrsOf(m), seg6AttrDst))
		return fmt.Sprintf("tunsrc %s", addr)
	}
	return fmt.Sprintf("hmac keyid %#x algorithm %x (%d bits)", rawnl.Uint32(rawnl.Get(attrsOf(m), seg6AttrKeyID)),
		rawnl.Get(attrsOf(m), seg6AttrAlgorithm), 8*len(rawnl.Get(attrsOf(m), seg6AttrSecret)))
}
