package ipset

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// errRevision says that a set needs a newer revision of its type than the kernel has.
var errRevision = errors.New("the kernel is too old for it")

// The kernel numbers what a type of set can do: a newer revision does all that the ones before do. A set keeps the
// number that it was made with, which is what the kernel that it was made on and the tool have in common, and another
// kernel may know lower numbers only.

// addition is what a revision of a type added.
type addition int

const (
	unheard addition = iota
	tuning           // IPSET_ATTR_BUCKETSIZE and IPSET_ATTR_INITVAL (Linux 5.11), which change nothing that a set does
	masks            // IPSET_ATTR_BITMASK, and IPSET_ATTR_NETMASK if it wasn't there (Linux 6.3)
)

// addedBy returns what a revision added (IPSET_TYPE_REV_MAX in net/netfilter/ipset/ip_set_hash_*.c), as far as kernels
// are around that lack it.
func addedBy(typename string, revision byte) addition {
	added := map[string]map[byte]addition{
		"hash:ip":           {5: tuning, 6: masks},
		"hash:ip,mac":       {1: tuning},
		"hash:ip,mark":      {3: tuning},
		"hash:ip,port":      {6: tuning, 7: masks},
		"hash:ip,port,ip":   {6: tuning},
		"hash:ip,port,net":  {8: tuning},
		"hash:mac":          {1: tuning},
		"hash:net":          {7: tuning},
		"hash:net,iface":    {8: tuning},
		"hash:net,net":      {3: tuning, 4: masks},
		"hash:net,port":     {8: tuning},
		"hash:net,port,net": {3: tuning},
	}
	return added[typename][revision]
}

// lowered returns the message that makes a set with the newest revision that the kernel has, if it was made with a newer
// one that it does not need.
func lowered(m rawnl.Message, newest byte) (rawnl.Message, error) {
	typename := rawnl.CString(rawnl.Get(nfnl.Attrs(m), attrTypename))
	data := rawnl.Get(nfnl.Attrs(m), attrData)
	old := byte(nfnl.Number(rawnl.Get(nfnl.Attrs(m), attrRevision)))
	for revision := old; revision > newest; revision-- {
		switch added := addedBy(typename, revision); {
		case added == tuning:
		case added == masks && rawnl.Get(data, dataBitmask) == nil && (typename == "hash:ip" || rawnl.Get(data, setNetmask) == nil):
		default:
			return m, fmt.Errorf("%w: it has revision %d of sets of type %s, this set has %d", errRevision, newest, typename, old)
		}
	}
	if old <= newest {
		return m, nil
	}
	m.Data = request(m.Type, rawnl.Rewrite(nfnl.Attrs(m), func(a rawnl.Attr) (rawnl.Attr, bool) {
		if a.Kind() == attrRevision {
			a.Data = []byte{newest}
		}
		return a, true
	})).Data
	return m, nil
}

// adapt returns a plan as this kernel takes it.
func adapt(ctx context.Context, n *ns.NS, plan []rawnl.Message) ([]rawnl.Message, error) {
	if len(plan) == 0 {
		return nil, nil
	}
	c, err := rawnl.Dial(n, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	type kind struct{ typename, family string }
	newest := map[kind]byte{}
	adapted := slices.Clone(plan)
	for i, m := range plan {
		if m.Type != typeSet {
			continue
		}
		typename, family := rawnl.Get(nfnl.Attrs(m), attrTypename), rawnl.Get(nfnl.Attrs(m), attrFamily)
		k := kind{string(typename), string(family)}
		if _, asked := newest[k]; !asked {
			attrs := rawnl.AppendAttr(nil, attrProtocol, rawnl.Get(nfnl.Attrs(m), attrProtocol))
			attrs = rawnl.AppendAttr(rawnl.AppendAttr(attrs, attrTypename, typename), attrFamily, family)
			answer, err := c.Request(ctx, request(subsystem|cmdType, attrs))
			if err != nil || len(answer) != 1 {
				continue // what is wrong with it, the kernel says when the set is to be made
			}
			newest[k] = byte(nfnl.Number(rawnl.Get(nfnl.Attrs(answer[0]), attrRevision)))
		}
		if adapted[i], err = lowered(m, newest[k]); err != nil {
			return nil, fmt.Errorf("%s: %w", Describe(m), err)
		}
	}
	return adapted, nil
}
