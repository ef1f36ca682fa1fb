// Package sidecar carries the socket options that CRIU loses. Both ends work from outside, on descriptors
// borrowed with pidfd_getfd(2): Capture reads the options of the service's sockets, Apply puts them back on
// the restored ones before the service runs.
package sidecar

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/nsmigrate/nsmigrate/checkpoint/sockets"
)

// Version is the version of the file form. A reader refuses a larger one.
const Version = 1

// Sidecar holds the options of all sockets of the trees of an image. Sockets that were made alike have the
// same options, so these are stored once, as profiles.
type Sidecar struct {
	Version  int       `json:"version"`
	Profiles []Profile `json:"profiles"`
	Sockets  []Socket  `json:"sockets"`
}

// Profile is a set of option values by the names of tcp(7), ip(7), ipv6(7), udp(7) and socket(7).
type Profile map[string]Value

// Value is an option's value: a number, or a text (bytes are in hex).
type Value struct {
	Num  int64
	Text string // not empty if the value is no number
}

// Socket is one socket. A descriptor that several processes share, or that one has twice, is listed once.
type Socket struct {
	Tree     int           `json:"tree"` // index of its tree in the manifest
	PID      int           `json:"pid"`  // of a holder, in the tree's own pid namespace
	FD       int           `json:"fd"`
	Inode    uint64        `json:"inode"` // on the source host
	Family   int           `json:"family"`
	Type     int           `json:"type"`
	Protocol int           `json:"protocol"`
	State    sockets.State `json:"state,omitempty"` // of TCP
	MSS      int           `json:"mss,omitempty"`   // of a TCP connection: bytes it sent in a segment
	Profile  int           `json:"profile"`         // index
}

var (
	// ErrInvalid means that a side-car is not well-formed.
	ErrInvalid = errors.New("invalid side-car")
	// ErrVersion means that a side-car was written by a newer nsmigrate.
	ErrVersion = errors.New("side-car version not supported")
)

// Count says how many sockets each tree has.
func (s *Sidecar) Count() map[int]int {
	count := make(map[int]int)
	for i := range s.Sockets {
		count[s.Sockets[i].Tree]++
	}
	return count
}

// Encode returns the file form.
func (s *Sidecar) Encode() ([]byte, error) { return json.Marshal(s) }

// Decode reads the file form and validates it. Options that this version does not know are kept. The error
// is [ErrVersion] or [ErrInvalid].
func Decode(b []byte) (*Sidecar, error) {
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if v.Version > Version {
		return nil, fmt.Errorf("%w: %d", ErrVersion, v.Version)
	}
	s := new(Sidecar)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return s, nil
}

// Validate checks that all references resolve and all values fit their options.
func (s *Sidecar) Validate() error {
	if s.Version < 1 || s.Version > Version {
		return fmt.Errorf("%w: version %d", ErrInvalid, s.Version)
	}
	known := make(map[string]option)
	for _, o := range options() {
		known[o.name] = o
	}
	for i, p := range s.Profiles {
		for name, v := range p {
			if o, ok := known[name]; ok {
				if _, err := o.encode(v); err != nil {
					return fmt.Errorf("profile %d: %w", i, err)
				}
			}
		}
	}
	for i, k := range s.Sockets {
		if k.Tree < 0 || k.PID <= 0 || k.FD < 0 || k.Profile < 0 || k.Profile >= len(s.Profiles) {
			return fmt.Errorf("%w: socket %d: tree %d, pid %d, fd %d, profile %d", ErrInvalid, i, k.Tree, k.PID, k.FD, k.Profile)
		}
	}
	return nil
}

// MarshalJSON writes a number or a string.
func (v Value) MarshalJSON() ([]byte, error) {
	if v.Text != "" {
		return json.Marshal(v.Text)
	}
	return strconv.AppendInt(nil, v.Num, 10), nil
}

// UnmarshalJSON reads what MarshalJSON writes.
func (v *Value) UnmarshalJSON(b []byte) error {
	*v = Value{}
	if len(b) > 0 && b[0] == '"' {
		if err := json.Unmarshal(b, &v.Text); err != nil {
			return err
		}
		if v.Text == "" {
			return errors.New("empty option value")
		}
		return nil
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	v.Num = n
	return err
}

func (v Value) String() string {
	if v.Text != "" {
		return v.Text
	}
	return strconv.FormatInt(v.Num, 10)
}
