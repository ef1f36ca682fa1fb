package genl

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// linux/ethtool_netlink.h, linux/ethtool.h.
const (
	ethtoolGetStrings  = 1
	ethtoolGetInfo     = 2 // ETHTOOL_MSG_LINKINFO_GET
	ethtoolSetInfo     = 3
	ethtoolGetModes    = 4 // ETHTOOL_MSG_LINKMODES_GET
	ethtoolSetModes    = 5
	ethtoolGetFeatures = 11
	ethtoolSetFeatures = 12
	ethtoolGetChannels = 17
	ethtoolSetChannels = 18
	ethtoolGetCoalesce = 19
	ethtoolSetCoalesce = 20

	ethtoolHeader = 1 // in every message

	headerIndex = 1
	headerFlags = 3
	compact     = 1 // ETHTOOL_FLAG_COMPACT_BITSETS

	featuresHW     = 2
	featuresWanted = 3

	bitsetBits  = 3
	bitsetValue = 4
	bitsetBit   = 1 // in bitsetBits
	bitName     = 2 // in bitsetBit
	bitValue    = 3

	stringsSets     = 2
	stringsSet      = 1 // in stringsSets
	stringsID       = 1 // in stringsSet
	stringsAll      = 3
	stringsOne      = 1 // in stringsAll
	stringIndex     = 1 // in stringsOne
	stringValue     = 2
	featuresStrings = 4 // ETH_SS_FEATURES

	infoPort       = 2
	modesSpeed     = 5
	modesDuplex    = 6
	coalesceFrames = 3 // ETHTOOL_A_COALESCE_RX_MAX_FRAMES

	channelsMax   = 2 // the first of four maxima: receive, transmit, other, combined
	channelsCount = 6 // the first of four counts
)

// ethtool carries the offloads that a user wants of a device, where something else is wanted than the kernel's default
// for most links, the numbers of channels of veth, where there is a choice, and the speed, port and coalescing of tun and
// tap devices. Virtual devices have no other settings that ethtool could change but message levels, which are for
// debugging.
func ethtool() family {
	header := rawnl.Flat()
	return family{
		number: familyEthtool, name: "ethtool", word: "ethtool", capture: captureEthtool, describe: describeEthtool,
		nests: map[byte]rawnl.Nest{
			ethtoolSetFeatures: {ethtoolHeader: header, featuresWanted: {bitsetBits: {rawnl.AnyAttr: rawnl.Flat()}}},
			ethtoolSetChannels: {ethtoolHeader: header}, ethtoolSetInfo: {ethtoolHeader: header},
			ethtoolSetModes: {ethtoolHeader: header}, ethtoolSetCoalesce: {ethtoolHeader: header},
		},
	}
}

// usuallyOff lists the offloads that are off until somebody wants them, and veth's.
func usuallyOff(veth bool) []string {
	list := []string{"tx-nocache-copy", "rx-gro-list", "rx-udp-gro-forwarding"}
	if veth {
		list = append(list, "rx-gro")
	}
	return list
}

func captureEthtool(ctx context.Context, c conn) ([]rawnl.Message, error) {
	names, err := featureNames(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("get names of features: %w", err)
	}
	devices, err := c.dump(ctx, ethtoolGetFeatures, nest(ethtoolHeader, attr(headerFlags, u32(compact))))
	if err != nil {
		return nil, fmt.Errorf("dump features: %w", err)
	}
	off, offVeth := make([]bool, len(names)), make([]bool, len(names))
	for i, name := range names {
		off[i], offVeth[i] = slices.Contains(usuallyOff(false), name), slices.Contains(usuallyOff(true), name)
	}
	var msgs []rawnl.Message
	for _, attrs := range devices {
		off := off
		if c.kindOf(attrs) == "veth" {
			off = offVeth
		}
		hw, wanted := bits(rawnl.Get(attrs, featuresHW)), bits(rawnl.Get(attrs, featuresWanted))
		altered := false
		for i := range names {
			altered = altered || hw(i) && wanted(i) == off[i]
		}
		if altered {
			msgs = append(msgs, c.message(ethtoolSetFeatures, deviceOf(attrs), nest(featuresWanted, features(names, hw, wanted))))
		}
	}
	channels, err := c.dump(ctx, ethtoolGetChannels, nest(ethtoolHeader))
	if err != nil {
		return nil, fmt.Errorf("dump channels: %w", err)
	}
	for _, attrs := range channels {
		if c.kindOf(attrs) != "veth" {
			continue // those of tun follow from the files that are open; hardware stays with its host
		}
		var counts []byte
		choice := false
		for i := range uint16(4) {
			if most := rawnl.Uint32(rawnl.Get(attrs, channelsMax+i)); most > 0 {
				choice = choice || most > 1
				counts = append(counts, attr(channelsCount+i, rawnl.Get(attrs, channelsCount+i))...)
			}
		}
		if choice {
			msgs = append(msgs, c.message(ethtoolSetChannels, deviceOf(attrs), counts))
		}
	}
	settings, err := captureTun(ctx, c)
	return append(msgs, settings...), err
}

// kindOf returns the kind of the link that an answer is about.
func (c conn) kindOf(attrs []byte) string {
	return c.links[int32(rawnl.Uint32(rawnl.Get(rawnl.Get(attrs, ethtoolHeader), headerIndex)))]
}

// captureTun reads what tun and tap devices say of themselves, if it isn't what they say at first.
func captureTun(ctx context.Context, c conn) ([]rawnl.Message, error) {
	var msgs []rawnl.Message
	for _, index := range c.linksOf("tun") {
		for _, s := range []struct {
			get, set byte
			attrs    []uint16
			fresh    [][]byte
		}{
			{ethtoolGetInfo, ethtoolSetInfo, []uint16{infoPort}, [][]byte{{0}}},                               // twisted pair
			{ethtoolGetModes, ethtoolSetModes, []uint16{modesSpeed, modesDuplex}, [][]byte{u32(10_000), {1}}}, // full duplex
			{ethtoolGetCoalesce, ethtoolSetCoalesce, []uint16{coalesceFrames}, [][]byte{u32(0)}},
		} {
			answers, err := c.request(ctx, s.get, nest(ethtoolHeader, attr(headerIndex, u32(index))))
			if errors.Is(err, unix.EOPNOTSUPP) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("get settings of device %d: %w", index, err)
			}
			for _, attrs := range answers {
				var fresh []byte
				for i, kind := range s.attrs {
					fresh = append(fresh, attr(kind, s.fresh[i])...)
				}
				if have := only(attrs, s.attrs...); len(have) > 0 && !bytes.Equal(have, fresh) {
					msgs = append(msgs, c.message(s.set, deviceOf(attrs), have))
				}
			}
		}
	}
	return msgs, nil
}

// features returns a set of those features that are for users to change.
func features(names []string, hw, wanted func(int) bool) []byte {
	var list []byte
	for i, name := range names {
		if !hw(i) {
			continue
		}
		bit := attr(bitName, append([]byte(name), 0))
		if wanted(i) {
			bit = append(bit, attr(bitValue, nil)...)
		}
		list = append(list, nest(bitsetBit, bit)...)
	}
	return nest(bitsetBits, list)
}

// deviceOf returns the header that names the device of an answer, by index.
func deviceOf(attrs []byte) []byte {
	return nest(ethtoolHeader, only(rawnl.Get(attrs, ethtoolHeader), headerIndex))
}

// featureNames returns the names of the bits in sets of features.
func featureNames(ctx context.Context, c conn) ([]string, error) {
	answers, err := c.request(ctx, ethtoolGetStrings, nest(ethtoolHeader), nest(stringsSets, nest(stringsSet, attr(stringsID, u32(featuresStrings)))))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, attrs := range answers {
		for set := range rawnl.Each(rawnl.Get(attrs, stringsSets)) {
			for s := range rawnl.Each(rawnl.Get(set.Data, stringsAll)) {
				if index := rawnl.Uint32(rawnl.Get(s.Data, stringIndex)); int(index) == len(names) {
					names = append(names, rawnl.CString(rawnl.Get(s.Data, stringValue)))
				}
			}
		}
	}
	return names, nil
}

// bits returns a function that looks a bit up in a compact set.
func bits(set []byte) func(int) bool {
	value := rawnl.Get(set, bitsetValue)
	return func(i int) bool {
		at := i / 32 * 4
		return at+4 <= len(value) && binary.NativeEndian.Uint32(value[at:])&(1<<(i%32)) != 0
	}
}

func describeEthtool(m rawnl.Message, name func(int32) string) string {
	attrs := attrsOf(m)
	dev := "dev " + name(int32(rawnl.Uint32(rawnl.Get(rawnl.Get(attrs, ethtoolHeader), headerIndex))))
	if commandOf(m) == ethtoolSetChannels {
		parts := []string{"channels", dev}
		for i, word := range []string{"rx", "tx", "other", "combined"} {
			if b := rawnl.Get(attrs, channelsCount+uint16(i)); b != nil {
				parts = append(parts, fmt.Sprintf("%s %d", word, rawnl.Uint32(b)))
			}
		}
		return strings.Join(parts, " ")
	}
	switch commandOf(m) {
	case ethtoolSetInfo:
		return fmt.Sprintf("port %s %x", dev, rawnl.Get(attrs, infoPort))
	case ethtoolSetModes:
		duplex := map[string]string{"\x00": "half", "\x01": "full"}[string(rawnl.Get(attrs, modesDuplex))]
		return fmt.Sprintf("speed %s %d duplex %s", dev, rawnl.Uint32(rawnl.Get(attrs, modesSpeed)), duplex)
	case ethtoolSetCoalesce:
		return fmt.Sprintf("coalescing %s rx-frames %d", dev, rawnl.Uint32(rawnl.Get(attrs, coalesceFrames)))
	}
	parts := []string{"features", dev}
	for bit := range rawnl.Each(rawnl.Get(rawnl.Get(attrs, featuresWanted), bitsetBits)) {
		feature, on := rawnl.CString(rawnl.Get(bit.Data, bitName)), rawnl.Get(bit.Data, bitValue) != nil
		if on == slices.Contains(usuallyOff(false), feature) {
			parts = append(parts, feature+map[bool]string{true: " on", false: " off"}[on])
		}
	}
	return strings.Join(parts, " ")
}
