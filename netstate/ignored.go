package netstate

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
	"github.com/nsmigrate/nsmigrate/netstate/xfrm"
)

// Ignored names what of the State a namespace lacks that [Build] made of it, because the kernel passed over it: most
// families of netlink accept attributes that they have never heard of, in silence. It is for a State of another kernel,
// and looks at nothing if it is of this one. An object that is not there at all is not named: its request was refused,
// or it waits for [Connect].
func Ignored(ctx context.Context, n *ns.NS, s *State, opts BuildOptions) ([]Loss, error) {
	here := kernelRelease()
	if s.Kernel == here {
		return nil, nil
	}
	got, err := Capture(ctx, n, CaptureOptions{Host: opts.Host})
	if err != nil {
		return nil, fmt.Errorf("look at what was built: %w", err)
	}
	got = got.redrawn(s)
	var losses []Loss
	names := s.names()
	for _, k := range kinds() {
		for _, c := range curtailed(k, s.lasting(k), got.lasting(k)) {
			losses = append(losses, Loss{
				Kind: k.String(), Object: describe(k, c.object, names),
				Reason: fmt.Sprintf("Linux %s here ignores what Linux %s knows of it: attribute %s", here, s.Kernel, strings.Join(c.missing, ", ")),
				Remedy: "restore on a newer kernel",
			})
		}
	}
	return losses, nil
}

// cut is an object that came back with less than it had.
type cut struct {
	object  rawnl.Message
	missing []string // attributes by their numbers, from the outermost to the innermost
}

// curtailed finds the objects of a kind that have lost attributes.
func curtailed(k Kind, want, got []rawnl.Message) []cut {
	inWant, inGot := match(k, want, got)
	var left []rawnl.Message // what is another object than any that was wanted
	for i, m := range got {
		if !inGot[i] {
			left = append(left, normalize(k, m))
		}
	}
	var cuts []cut
	next := 0 // both lists have much the same order
	for i, m := range want {
		if inWant[i] || len(left) == 0 {
			continue
		}
		whole := normalize(k, m)
		for j := range min(len(left), nearby) {
			at := (next + j) % len(left)
			missing, ok := lacking(k, left[at], whole)
			if !ok {
				continue
			}
			if len(missing) > 0 {
				cuts = append(cuts, cut{m, missing})
			}
			left, next = slices.Delete(left, at, at+1), at
			break
		}
	}
	return cuts
}

// nearby is how many objects are looked at for the one that lost attributes.
const nearby = 64

// lacking returns the attributes that an object lost; ok is false if the two differ in another way. Attributes whose
// value is that of an object of which nobody said anything are not lost.
func lacking(k Kind, less, more rawnl.Message) (missing []string, ok bool) {
	size := attrsAt(k, more)
	if size < 0 || less.Type != more.Type || len(less.Data) < size || len(more.Data) < size || !bytes.Equal(less.Data[:size], more.Data[:size]) {
		return nil, false
	}
	return lackingAttrs(k, less.Data[size:], more.Data[size:], "")
}

func lackingAttrs(k Kind, less, more []byte, path string) (missing []string, ok bool) {
	have, err := rawnl.ParseAttrs(less)
	if err != nil {
		return nil, false
	}
	had, err := rawnl.ParseAttrs(more)
	if err != nil {
		return nil, false
	}
	for _, a := range had {
		at := fmt.Sprintf("%s%d", path, a.Kind())
		switch {
		case len(have) == 0 || have[0].Kind() != a.Kind():
			if path == "" && a.Kind() <= old(k) {
				return nil, false
			}
			if !usual(k, at, a.Data, had) {
				missing = append(missing, at)
			}
			continue
		case !bytes.Equal(have[0].Data, a.Data):
			inner, ok := lackingAttrs(k, have[0].Data, a.Data, at+"/")
			if !ok {
				return nil, false
			}
			missing = append(missing, inner...)
		}
		have = have[1:]
	}
	if len(have) > 0 {
		return nil, false
	}
	return missing, true
}

// old returns the largest number of an attribute that all kernels know, of kinds whose objects are told apart by such
// attributes: of two objects that differ in one, neither is what the other was.
func old(k Kind) uint16 {
	switch k {
	case KindAddress:
		return unix.IFA_RT_PRIORITY
	case KindNexthop:
		return nhaFDB
	case KindRoute:
		return rtaNHID
	case KindRule:
		return unix.FRA_DPORT_RANGE
	case KindNeigh, KindFDB:
		return ndaNHID
	}
	return 0
}

// usual reports whether an attribute that a kernel does not have has the value that it has by itself on one that does.
func usual(k Kind, path string, value []byte, beside []rawnl.Attr) bool {
	if allZero(value) {
		return true
	}
	if k == KindLink && len(value) == 4 {
		// The limits of IPv4 follow those that were there before, up to what was the maximum then.
		for attr, of := range map[string]uint16{"63": unix.IFLA_GSO_MAX_SIZE, "64": unix.IFLA_GRO_MAX_SIZE} {
			limit, _ := rawnl.Find(beside, of)
			if path == attr && rawnl.Uint32(value) == min(rawnl.Uint32(limit), 65536) {
				return true
			}
		}
	}
	return slices.Contains(usualValues()[k.String()+" "+path], string(value))
}

// usualValues returns by kind and path the values of attributes that are not zero and that nobody set, of kinds of
// links and queueing disciplines for which an attribute of this number is new.
func usualValues() map[string][]string {
	const info, data, slave = "18", "2", "5" // IFLA_LINKINFO, IFLA_INFO_DATA, IFLA_INFO_SLAVE_DATA
	return map[string][]string{
		"link " + info + "/" + data + "/31":  {"\x01"},     // IFLA_VXLAN_LOCALBYPASS
		"link " + info + "/" + data + "/32":  {"\x01"},     // IFLA_BOND_COUPLED_CONTROL
		"link " + info + "/" + slave + "/10": {"\xff\x00"}, // IFLA_BOND_SLAVE_ACTOR_PORT_PRIO
		"link " + info + "/" + data + "/33":  {"\x00\x00\x00\xf7\x00\x00\x00\xff", "\xf7\xff\xff\xff\x00\x00\x00\xff"},
		"tc 2/16":                            {"\x03\x00\x00\x00\x01\x02\x02\x02\x01\x02\x00\x00\x01\x01\x01\x01\x01\x01\x01\x01"}, // TCA_FQ_PRIOMAP
		"tc 2/17":                            {"\x00\x00\x09\x00\x00\x00\x03\x00\x00\x00\x01\x00"},                                 // TCA_FQ_WEIGHTS
	}
}

// attrsAt returns where the attributes of a message begin; -1 if what precedes them is not known.
func attrsAt(k Kind, m rawnl.Message) int {
	switch k {
	case KindNFTables, KindIPSet, KindNetfilter:
		return 4 // struct nfgenmsg
	case KindTC:
		return 20 // struct tcmsg
	case KindXFRM:
		if size := xfrm.HeaderLen(m.Type); size > 0 {
			return size
		}
		return -1
	case KindGeneric, KindConntrack: // whose families refuse what they don't know; whose entries change
		return -1
	}
	size, typ := headerOf(k)
	if typ != m.Type {
		return -1
	}
	return size
}
