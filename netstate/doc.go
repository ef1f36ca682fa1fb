// Package netstate holds the network state of a namespace as data.
//
// [Capture] reads a namespace into a [State], which is mostly the kernel's own dump messages, unchanged and
// grouped by kind: the kernel's serialisation is complete and extensible, so an attribute that nobody here
// knows is still carried. [Build] replays a State into a fresh namespace, where interface indexes can be
// chosen, so that messages that refer to each other by index need no translation. The uplinks, which tie
// the namespace to its host, are recorded with the host's side of them and are built administratively
// down; [Connect] brings them up.
//
// Everything between the two ends is pure: [Plan] turns a State into ordered batches of operations, [Diff]
// compares two States, [Render] prints one in the words of ip(8), and [ReadState] validates one that comes
// from a file.
package netstate
