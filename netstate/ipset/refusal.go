package ipset

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/nfnl"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Numbers of errors that only ipset has (linux/netfilter/ipset/ip_set.h).
const (
	errFirst   unix.Errno = 4097 // after IPSET_ERR_PRIVATE
	errOfTypes unix.Errno = 4352 // IPSET_ERR_TYPE_SPECIFIC
)

// worded puts a refusal by one of ipset's own errors into words; plan tells the type of the set that it is about.
func worded(err error, plan []rawnl.Message) error {
	refused, ok := errors.AsType[*rawnl.Error](err)
	if !ok || refused.Message != "" || refused.Index < 0 || refused.Index >= len(plan) {
		return err
	}
	kind := ""
	for _, m := range plan {
		if typ := rawnl.Get(nfnl.Attrs(m), attrTypename); typ != nil && nameOf(m) == nameOf(plan[refused.Index]) {
			kind, _, _ = strings.Cut(rawnl.CString(typ), ":")
		}
	}
	first, words := errFirst, wordsOf("")
	if refused.Errno >= errOfTypes {
		first, words = errOfTypes, wordsOf(kind)
	}
	if i := int(refused.Errno) - int(first); i >= 0 && i < len(words) {
		refused.Message = words[i]
	}
	return err
}

// wordsOf returns what the errors of a class of sets mean, or those of all sets, in the order of their numbers.
func wordsOf(class string) []string {
	switch class {
	case "":
		return []string{
			"the kernel's ipset speaks another version of its protocol", "this kernel has no such type of set, or not this revision of it",
			"there are as many sets as this kernel takes", "the set is in use", "there is a set of this name already",
			"the set is of another type", "it is there already", "the length of the prefix is out of range", "the netmask is out of range",
			"the set is of another family", "the set has no timeouts", "the set is referred to", "an IPv4 address is wanted", "an IPv6 address is wanted",
			"the set has no counters", "the set has no comments", "the mask of marks is out of range", "the set has no room for skbinfo",
			"netmask and bitmask exclude each other",
		}
	case "hash":
		return []string{
			"the set is full", "the element is all zeros", "the protocol is not possible here", "a protocol is missing",
			"the set takes no ranges", "the range is not possible",
		}
	case "bitmap":
		return []string{"the element is out of the range of the set", "the range is larger than such a set can be"}
	case "list":
		return []string{
			"there is no set of this name", "the set can't be a member", "there is no set to refer to", "the set to refer to does not exist",
			"the set is full", "the set to refer to is no member",
		}
	}
	return nil
}
