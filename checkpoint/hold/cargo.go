package hold

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// MaxCargo bounds an encoded list of frames, in bytes.
const MaxCargo = 64 << 20

// recordLen is the header of an encoded frame: its uplink's index and its length.
const recordLen = 8

// Encode returns frames as they travel to another host. What exceeds [MaxCargo] is left out.
func Encode(frames []Frame) []byte {
	var b []byte
	for _, f := range frames {
		if len(b)+recordLen+len(f.Data) > MaxCargo {
			break
		}
		b = binary.BigEndian.AppendUint32(b, uint32(f.Index))
		b = binary.BigEndian.AppendUint32(b, uint32(len(f.Data)))
		b = append(b, f.Data...)
	}
	return b
}

// ErrMalformed means that bytes are no encoded list of frames.
var ErrMalformed = errors.New("malformed list of held packets")

// Decode reads what another host has encoded, to its end.
func Decode(r io.Reader) ([]Frame, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxCargo+1))
	if err != nil {
		return nil, err
	}
	if len(b) > MaxCargo {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrMalformed, MaxCargo)
	}
	var frames []Frame
	for len(b) > 0 {
		if len(b) < recordLen {
			return nil, fmt.Errorf("%w: %d bytes are left over", ErrMalformed, len(b))
		}
		index, size := int32(binary.BigEndian.Uint32(b)), binary.BigEndian.Uint32(b[4:])
		b = b[recordLen:]
		if uint64(size) > uint64(len(b)) {
			return nil, fmt.Errorf("%w: a frame of %d bytes in %d", ErrMalformed, size, len(b))
		}
		frames = append(frames, Frame{Index: index, Data: slices.Clip(b[:size])})
		b = b[size:]
	}
	return frames, nil
}
