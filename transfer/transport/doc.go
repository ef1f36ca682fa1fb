// Package transport reaches the other host, and lets other hosts reach this one.
//
// Dial connects to an Address: through the system's ssh client, which starts nsmigrate over there; by TLS to
// `nsmigrate serve`; to a unix socket; or through a command. A Server is what `nsmigrate serve` listens with.
//
// # What each transport guarantees
//
//	ssh   who the hosts are is ssh's business: its known_hosts, keys, agents and configuration are honoured
//	tls   version 1.3 only. Both sides show certificates; the server's must be for the host that was asked for, the
//	      client's must have a name that is on the server's list. Lists of revoked certificates are honoured
//	unix  who is at the other end must be root or the user that asks, says the kernel
//	exec  nothing: whoever gives the command knows where it leads
//
// # The first bytes
//
// A side that is reached speaks first. Either what it says is the beginning of the stream that follows, or it refuses:
//
//	offset  size  field
//	0       8     magic "nsmdeny\n"
//	8       1     why: 1 not allowed, 2 busy, 3 going away, 4 revoked
//	9       2     length of the text, big endian, at most 1 KiB
//	11            text for people
//
// Dial waits for these bytes. So it returns when the way is free to the end, and knows why if it isn't.
package transport
