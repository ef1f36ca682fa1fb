// Package stream carries messages and files between two hosts over any connection that keeps bytes in order: a
// socket, TLS, a pair of pipes to ssh.
//
// # The format
//
// Each side begins with a greeting, without waiting for the other's. Integers are big endian.
//
//	offset  size  field
//	0       8     magic "nsmwire\n"
//	8       2     major version: another one can't be understood
//	10      2     minor version: additions that an older side is not sent
//	12      4     milliseconds of silence after which the sender of this gives up
//	16      4     CRC-32C of the 16 bytes before
//
// Frames follow:
//
//	offset  size  field
//	0       1     kind
//	1       1     flags: how the payload of a data frame is packed, 0 plain, 1 zstd, 2 without its zero pages
//	2       2     0
//	4       4     sequence number: frames of this side before this one, modulo 2^32
//	8       4     length of the payload
//	12      4     length of the payload when it is unpacked
//	16      4     checksum of the payload: of a data frame the low 32 bits of its XXH3 of 128 bits, else CRC-32C
//	20      4     CRC-32C of the 20 bytes before
//	24            payload
//
//	kind     payload
//	message  length of the type (1 byte), type, JSON
//	entry    size (8 bytes, -1 is unknown), name; data frames follow, and end or cancel
//	data     at most 1 MiB of the entry, packed or not
//	end      digest of the entry (32 bytes), its size (8 bytes)
//	cancel   nothing; the entry could not be read to its end
//	ping     nothing; sent between other frames too whenever a side has been silent for a while
//	bye      nothing; the last frame of a side that had nothing more to say
//
// A data frame without its zero pages begins with a map, one bit for each 4 KiB of the data, lowest bit first, in as
// few bytes as hold it. A bit that is set stands for a page that isn't zero; those pages follow.
//
// The digest of an entry is the SHA-256 of the XXH3 of 128 bits, in big endian, of each of its data frames, unpacked, one
// after the other: so all cores take part in it, and memory passes at the speed at which it can be read. SHA-256 of the
// data itself took both hosts more time than all else, and the service stands still meanwhile.
//
// # What is detected, and what isn't
//
// Every change, loss, repetition or change of order of bytes by accident is detected: by the header's own checksum
// before its lengths are believed, by the payload's, by the sequence, by the digest of a whole entry, and at the end by
// the bye that is missing. Who the other side is, and whether somebody in the middle altered the bytes on purpose, is
// the business of the connection below: ssh or TLS.
//
// What the other side sends is bounded in memory and in time before it is believed: see the errors of this package.
package stream
