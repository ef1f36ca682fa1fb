package ship

import (
	"errors"
	"fmt"
)

// Run is a run of numbers.
type Run struct {
	First int64 `json:"first"`
	Count int64 `json:"count"`
}

// Want is what a destination lacks of a regular file.
type Want struct {
	Index  int   `json:"index"`  // of the entry in the index
	Blocks []Run `json:"blocks"` // ascending
}

// Wants is a destination's answer to an index. It fits a message of JSON.
type Wants struct {
	Files []Want `json:"files,omitempty"` // ascending
	Same  []Run  `json:"same,omitempty"`  // entries that are the very same files on both hosts, ascending
	Bytes int64  `json:"bytes"`           // of content that travels

	// What is in the way on the destination and goes at the commit, for the user to see: at most a few of many.
	Replaced int      `json:"replaced,omitempty"` // files that are different there
	Removed  int      `json:"removed,omitempty"`  // of the destination's directories that travel, what the source does not have
	Examples []string `json:"examples,omitempty"` // of the removed ones
}

// maxRuns bounds the description of one file's blocks: gaps between them are wanted too rather than told.
const maxRuns = 1 << 10

// add notes that a block is wanted; calls come in ascending order.
func (w *Want) add(block int64) {
	if n := len(w.Blocks); n > 0 {
		last := &w.Blocks[n-1]
		if block == last.First+last.Count || n == maxRuns {
			last.Count = block + 1 - last.First
			return
		}
	}
	w.Blocks = append(w.Blocks, Run{block, 1})
}

// validate protects the source from what it is asked.
func (w *Wants) validate(x *Index) error {
	last := -1
	for _, f := range w.Files {
		if f.Index <= last || f.Index >= len(x.Entries) || x.Entries[f.Index].Kind != Regular {
			return fmt.Errorf("file %d is wanted", f.Index)
		}
		last = f.Index
		if err := validRuns(f.Blocks, maxSize); err != nil {
			return fmt.Errorf("file %d: %w", f.Index, err)
		}
	}
	return validRuns(w.Same, int64(len(x.Entries)))
}

func validRuns(runs []Run, limit int64) error {
	end := int64(0)
	for _, r := range runs {
		if r.First < end || r.Count <= 0 || r.First > limit || r.Count > limit-r.First {
			return errors.New("malformed list of blocks")
		}
		end = r.First + r.Count
	}
	return nil
}
