package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
)

// fetch downloads a file that holds the connection's stream to the server. The load's end waits for the file's.
func (c *conn) fetch() error {
	request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: peer\r\nConnection: close\r\n\r\n", c.load.flags.path)
	if _, err := io.WriteString(c.net, request); err != nil {
		return err
	}
	response, err := http.ReadResponse(bufio.NewReader(c.net), nil)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK || response.ContentLength <= 0 {
		return fmt.Errorf("%s, %d bytes", response.Status, response.ContentLength)
	}
	p := pace{rate: c.load.flags.readRate}
	buf := make([]byte, 64<<10)
	for off := uint64(0); ; {
		c.begin()
		n, err := response.Body.Read(buf)
		if i := toServer(c.id).Check(buf[:n], off); i >= 0 {
			return mismatchError{off + uint64(i)}
		}
		off += uint64(n)
		if n > 0 {
			c.got(n)
		}
		if !c.load.stopping() { // what is left to read shall not take long
			p.wait(n)
		}
		if err == io.EOF && off == uint64(response.ContentLength) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", off, response.ContentLength, err)
		}
	}
}
