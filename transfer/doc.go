// Package transfer carries an image from one place to another.
//
// # The archive
//
// An image as one file is a tar archive, plain or compressed with zstd, with a seal behind it:
//
//	archive      = body seal
//	body         = tar, or zstd frames that together hold a tar, each at most 1 MiB of it
//	tar          = manifest.json manifest.sha256 { directory | entry } two-zero-blocks
//
// The manifest comes first, so that a reader knows of everything that follows what it is, how large, and with
// which digest. Entries follow in the manifest's order, each directory before its first entry: the manifest alone
// determines the sequence of headers, and a reader accepts no other.
//
// The seal makes the loss or change of any byte known, of padding and of headers too, and also to who reads from
// a pipe:
//
//	offset  size  field
//	0       8     magic "nsmseal" and the seal's version, 2
//	8       8     length of the body in bytes, big endian
//	16      16    XXH3 of 128 bits of the body, big endian
//
// Behind zstd frames the seal is a skippable frame (magic 0x184D2A5E, length 32), behind a plain tar a block of 512
// bytes filled up with zeros. tar(1), zstd(1) and checkpointctl(1) pass over both. Nothing follows a seal.
//
// A seal protects from accidents. It says nothing of who made an archive.
package transfer
