// Package criu drives CRIU, and is the only package that knows it: it starts `criu swrk` inside the
// namespaces it has to work in, speaks its protocol (go-criu's rpc messages) with a decision at every hook,
// and explains its failures from its log. go-criu's own client can't refuse a hook, be cancelled or be
// started ahead of its request.
package criu
