package journal

import (
	"bytes"
	"testing"
)

// Lines returns records as they stand in a file.
func Lines(tb testing.TB, records ...Record) []byte {
	tb.Helper()
	var b bytes.Buffer
	for _, r := range records {
		line, err := r.line()
		if err != nil {
			tb.Fatal(err)
		}
		b.Write(line)
	}
	return b.Bytes()
}
