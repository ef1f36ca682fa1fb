package blackout

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// criuStatistics reads what CRIU wrote about a dump and a restore beside its images.
func criuStatistics(dump, restore string) (CRIU, error) {
	d, err := os.ReadFile(filepath.Join(dump, "stats-dump"))
	if err != nil {
		return CRIU{}, err
	}
	r, err := os.ReadFile(filepath.Join(restore, "stats-restore"))
	if err != nil {
		return CRIU{}, err
	}
	// Numbers of fields in CRIU's images/stats.proto.
	const entryDump, entryRestore = 1, 2
	const frozen, memDump, restoreTime = 2, 3, 4
	dumped, err := statistics(d, entryDump)
	if err != nil {
		return CRIU{}, err
	}
	restored, err := statistics(r, entryRestore)
	return CRIU{Frozen: dumped[frozen], MemDump: dumped[memDump], Restore: restored[restoreTime]}, err
}

var errStatistics = errors.New("criu's statistics are malformed")

// statistics decodes one of CRIU's files of statistics: two magic numbers, a length, and a message that has a message
// with the numbers, which are microseconds where they are times.
func statistics(b []byte, entry protowire.Number) (map[protowire.Number]time.Duration, error) {
	const header = 12
	if len(b) < header || uint64(binary.LittleEndian.Uint32(b[8:])) != uint64(len(b)-header) {
		return nil, errStatistics
	}
	found := map[protowire.Number]time.Duration{}
	err := fields(b[header:], func(n protowire.Number, _ uint64, message []byte) error {
		if n != entry {
			return nil
		}
		return fields(message, func(n protowire.Number, v uint64, _ []byte) error {
			found[n] = time.Duration(uint32(v)) * time.Microsecond
			return nil
		})
	})
	return found, err
}

// fields calls fn for every number and message in a message.
func fields(b []byte, fn func(protowire.Number, uint64, []byte) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %w", errStatistics, protowire.ParseError(n))
		}
		b = b[n:]
		var value uint64
		var message []byte
		switch kind {
		case protowire.VarintType:
			value, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			message, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return fmt.Errorf("%w: %w", errStatistics, protowire.ParseError(n))
		}
		b = b[n:]
		if err := fn(number, value, message); err != nil {
			return err
		}
	}
	return nil
}
