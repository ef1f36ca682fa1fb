package transfer

import (
	"context"
	"io"
)

// contextReader lets a read that blocks, on a pipe whose other end is stuck, be given up: the read then goes on
// behind the scenes, and its buffer belongs to it.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	return interruptible(c.ctx, func() (int, error) { return c.r.Read(p) })
}

// contextWriter is the same for writing.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c contextWriter) Write(p []byte) (int, error) {
	return interruptible(c.ctx, func() (int, error) { return c.w.Write(p) })
}

func interruptible(ctx context.Context, f func() (int, error)) (int, error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := f()
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		return r.n, r.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}
