package journal

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"time"
)

// Bounds of what is read back: a journal holds names and numbers, no images.
const (
	maxRecord  = 1 << 20
	maxJournal = 64 << 20
)

// Record is one line of a journal.
type Record struct {
	Step string          `json:"step"`           // what is about to be done, or what was decided
	Time time.Time       `json:"time"`           // when
	Boot string          `json:"boot"`           // the kernel's boot ID then
	Data json.RawMessage `json:"data,omitempty"` // what the writer needs in order to finish or undo the step
}

// checksumLength is that of the checksum in hexadecimal and the blank behind it.
const checksumLength = 9

func checksum(object []byte) []byte {
	sum := crc32.Checksum(object, crc32.MakeTable(crc32.Castagnoli))
	return fmt.Appendf(nil, "%08x ", sum)
}

// line returns the record as it stands in the file.
func (r Record) line() ([]byte, error) {
	object, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if len(object) > maxRecord {
		return nil, fmt.Errorf("a record of %d bytes, the most is %d", len(object), maxRecord)
	}
	return append(append(checksum(object), object...), '\n'), nil
}

// Parse reads the lines of a journal. A last line without a newline was being written when the writer died and is
// left out; whole is the length of what is before it. Any other damage is an error, and what could be read before
// it is returned with it.
func Parse(data []byte) (records []Record, whole int, err error) {
	for {
		end := bytes.IndexByte(data[whole:], '\n')
		if end < 0 {
			return records, whole, nil
		}
		r, err := parseLine(data[whole : whole+end])
		if err != nil {
			return records, whole, fmt.Errorf("line %d: %w", len(records)+1, err)
		}
		records = append(records, r)
		whole += end + 1
	}
}

func parseLine(line []byte) (Record, error) {
	if len(line) > checksumLength+maxRecord {
		return Record{}, fmt.Errorf("it has %d bytes, the most is %d", len(line), checksumLength+maxRecord)
	}
	if len(line) < checksumLength {
		return Record{}, fmt.Errorf("%q is no record", line)
	}
	sum, object := line[:checksumLength], line[checksumLength:]
	if want := checksum(object); !bytes.Equal(sum, want) {
		return Record{}, fmt.Errorf("its checksum is %q, but its content has %q", sum, want)
	}
	var r Record
	if err := json.Unmarshal(object, &r); err != nil {
		return Record{}, err
	}
	if r.Step == "" {
		return Record{}, fmt.Errorf("it names no step")
	}
	return r, nil
}

// ValidID reports whether a migration can have this ID: 32 hexadecimal digits, as [NewID] makes them.
func ValidID(id string) bool {
	raw, err := hex.DecodeString(id)
	return err == nil && len(raw) == idLength && id == hex.EncodeToString(raw)
}
