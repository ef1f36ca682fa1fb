package tc

import (
	"fmt"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// Losses returns one line for each object of a capture that [Plan] leaves out or changes: what it is ("qdisc tbf 1:
// dev eth0 root"), a colon and the reason. name gives the names of devices.
func Losses(msgs []rawnl.Message, name func(index int32) string) []string {
	var lines []string
	for _, m := range msgs {
		reason := lossOf(m)
		if reason == "" && rawnl.Get(attrsOf(m), tcaStats2) != nil {
			reason = "the kernel does not tell how its rate estimator is set"
		}
		if reason != "" {
			object := nameOf(m, name)
			if m.Type == typeAction {
				object = "action " + rawnl.CString(rawnl.Get(actionOf(m), actKind))
			}
			lines = append(lines, fmt.Sprintf("%s: %s", object, reason))
		}
	}
	return lines
}

// lossOf returns why an object can't be carried; "" if it can be.
func lossOf(m rawnl.Message) string {
	const noProgram = "a BPF program is not carried"
	options := rawnl.Get(attrsOf(m), tcaOptions)
	switch m.Type {
	case typeQdisc:
		switch kindOf(m) {
		case "plug":
			return "the kernel does not tell whether it is plugged"
		case "gred":
			return "the kernel does not tell the tables of its queues"
		}
	case typeFilter:
		kind := kindOf(m)
		if kind == "bpf" && rawnl.Get(options, bpfOps) == nil {
			return noProgram
		}
		if where := classifierOf(kind); where.actions != 0 {
			for a := range rawnl.Each(rawnl.Get(options, where.actions)) {
				if programmed(a.Data) {
					return noProgram
				}
			}
		}
	case typeAction:
		if programmed(actionOf(m)) {
			return noProgram
		}
	}
	return ""
}

// programmed reports whether an action runs a BPF program that is more than the instructions that it shows.
func programmed(act []byte) bool {
	return rawnl.CString(rawnl.Get(act, actKind)) == "bpf" && rawnl.Get(rawnl.Get(act, actOptions), actBPFOps) == nil
}
