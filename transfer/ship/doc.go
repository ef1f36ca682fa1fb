// Package ship brings files along with a service that moves to another host: those that the service has open for
// writing, and files and directories that the user names.
//
// # The way of a file
//
// The source surveys what is to travel while the service runs ([Survey]) and sends the index. The destination compares
// it with its own files ([Destination.Compare]): it answers which blocks it lacks, and every problem at once. What it
// lacks is sent ([Source.Send]) and staged ([Destination.Stage]). Then the source sends what has changed meanwhile
// ([Source.Update], [Destination.Update]), as often as it is worth it while the service runs, and once when the service
// is frozen. This last pass asks nothing: the source knows what the destination has. It looks at every file's times, and
// reads those that have changed. At last the destination puts everything into its place ([Destination.Install]).
//
//	source                                         destination
//	Survey                 -- files/index -->      Compare: Wants, problems
//	Source.Send            -- files/data -->       Stage
//	Source.Update          -- files/changes -->    Update          (running, any number of times)
//	Source.Update          -- files/changes -->    Update, Install (frozen)
//	                                               Undo, or Commit after the service went live
//
// # What the other host's files become
//
// A named directory comes to be as on the source: what the source does not have in it goes ([Wants] counts it). A
// directory that only leads to something that travels is made if it is missing, and else left alone. Regular files,
// directories, symbolic links, fifos and hard links among them travel with owner, mode, time of the last change,
// extended attributes, ACLs, capabilities and holes; sockets are left out, with a note; devices are a problem. Space that
// is reserved but not written, access times and the flags of chattr(1) do not travel.
//
// A file on storage that both hosts see (the same share of a file server, or the same disk of one kernel) is recognised
// and left alone. Where the file system has no name that means the same on both (fuse, 9p), the destination makes its
// hidden directory before anything else ([Destination.Mark]), and the source refuses to go on if it sees it
// ([Source.FindMarks]).
//
// # Nothing is lost
//
// All is staged in hidden directories, ".nsmigrate-ID", each beside the destination of what is in it and thereby on the
// same file system. A directory is staged as a whole: what this host has already is linked into it if it is the same, or
// copied block by block. So an installation is two renames for each named directory or file: the old one moves into the
// hidden directory, the new one out of it. A directory can't be renamed if something is mounted on it or in it (or if it
// comes from a lower layer of an overlay): then it stays, and what is in it is renamed one by one.
//
// Every change outside of the hidden directories, and each of these, is a [Change] that Options.Record is told of before
// it is made. [Undo] and [Commit] need nothing but the changes and decide by what they find, so they may be repeated after a
// crash at any point. Files are identified by inode and birth, so that what somebody else put under a name since is never
// taken for ours. Only the times of directories in which hidden ones were made stay changed after an undo, if these
// directories do not travel themselves.
//
// # When a file counts as changed
//
// A file is read again if its inode, size, mtime or ctime is another, if its ctime was a moment ago when it was looked at
// (clocks tick), if it is on a remote file system, or if a process writes to it through a shared mapping ([Root].Mapped).
// Of a file that all its writers can only append to ([Root].Append) only what was appended is read, and a sample of the
// rest, which tells whether it was cut off meanwhile.
//
// # The stream
//
// All three entries have one form, read by whoever takes it from an unknown peer with bounded memory:
//
//	stream  = "nsmship1" { record } end
//	record  = kind (1 byte) length (uvarint) payload
//	'S'       storage: its name; storages are numbered from 1
//	'E'       entry: kind, path, flags, mode, uid, gid, mtime, xattrs, target, storage, inode, size, block size,
//	          extents of data, SHA-256 of each block with data (in an index)
//	'R'       path that is gone, with all below it
//	'I'       number of the entry of the index that the data behind it belongs to
//	'D'       offset and bytes of the last 'E' or 'I', in its data
//	end     = 'Z' 0
//
// An index is S* E*, sorted by path; data is { I D* }; changes are S* R* { E D* }. Integers are varints, strings and
// lists are preceded by their length. The connection's own digests protect it.
//
// Names come from another host: no symbolic link is followed below the root, none leads out of it, and directories that
// belong to the host itself can't be replaced.
package ship
