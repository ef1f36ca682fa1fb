// Package journal remembers what a migration, a dump or a restore did on a host, so that whatever crashes, the next
// process knows what was done, what may have been done and who decides. What a migration decides outlives the host's
// power; a dump or a restore concerns one host alone, and what its journal speaks of ends with that.
//
// # The format
//
// A journal is a folder below the state directory, named by the operation's ID and the host's role in it, with one
// file of lines in it that is only ever appended to, and perhaps others of which the last version alone matters:
//
//	/var/lib/nsmigrate/                          mode 0700
//	    8d2e...f1.destination/                   mode 0700
//	        journal                              mode 0600
//
//	line = CRC-32C of what follows the blank, as 8 hexadecimal digits, a blank, a JSON object, a newline
//	object = {"step": ..., "time": ..., "boot": ..., "data": ...}
//
// The first line's step is "created" and its data names the format's version, the ID and the role; a line with step
// "finished" is the last. A line without its newline was being written when the writer died: what it announces was
// not done yet, and the line is ignored. Any other line that doesn't match its checksum is an error: then a person
// has to look, since a guess could bring a second copy to life.
//
// # The lock
//
// The process that works on an operation holds a lock on its journal, which the kernel frees however that process
// ends. A journal that is locked is being worked on; one that isn't was left behind by a crash.
//
// # Reboots
//
// Each line carries the kernel's boot ID. After a reboot ([Content.Rebooted]) the processes, namespaces and links
// that a journal speaks of are gone, and their names and numbers may belong to somebody else.
//
// # Tombstones
//
// A finished journal that has a [Tombstone] stays for a week and says how the migration ended here, to a source that
// lost the connection and asks. It also keeps an ID from being used twice.
package journal
