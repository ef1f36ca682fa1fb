package transfer

import (
	"bytes"
	"io"
)

// Sealed returns a body with a good seal.
func Sealed(c Compression, body []byte) []byte {
	var b bytes.Buffer
	w := newSealWriter(&b)
	w.Write(body)
	w.Seal(c)
	return b.Bytes()
}

// Compressed returns a body of zstd frames.
func Compressed(tar []byte) []byte {
	var b bytes.Buffer
	compress(&b, func(w io.Writer) error {
		_, err := w.Write(tar)
		return err
	})
	return b.Bytes()
}
