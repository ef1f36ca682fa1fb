package lock

// WithoutLog has the kernel refuse to tell of packets, as one without nft_log does: it is asked by a name that none knows.
func (l *Lock) WithoutLog() { l.tell.by = "no_log" }
