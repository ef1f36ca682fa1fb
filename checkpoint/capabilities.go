package checkpoint

import (
	"fmt"
	"math/bits"
	"strings"

	"github.com/moby/sys/capability"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

// CheckCapabilities returns a problem for each tree with a process that has capabilities which self, who would give them
// back to it, lacks: it comes back with exactly those that it had, or not at all.
func CheckCapabilities(self *proc.Process, trees []Tree) []Problem {
	var problems []Problem
	for _, t := range trees {
		lacks := t.Capabilities &^ self.Permitted
		if lacks == 0 {
			continue
		}
		problems = append(problems, Problem{
			Kind: "capability", Object: capabilityNames(lacks), Reason: fmt.Sprintf("%q has it, and nsmigrate on this host can't give what it lacks", t.Name()),
			Remedy: "give it to nsmigrate here (its daemon lacks what the unit file leaves out: see all-capabilities.conf beside it), " +
				"or start the service without, such as with setpriv --bounding-set",
		})
	}
	return problems
}

// capabilityNames lists the capabilities of a set as capabilities(7) calls them.
func capabilityNames(set uint64) string {
	var names []string
	for ; set != 0; set &= set - 1 {
		names = append(names, "CAP_"+strings.ToUpper(capability.Cap(bits.TrailingZeros64(set)).String()))
	}
	return strings.Join(names, " ")
}
