// Package checkpoint freezes one service and writes it down: the network namespace as netstate saw it, the
// process trees as CRIU dumped them, and the socket options that CRIU loses.
package checkpoint
