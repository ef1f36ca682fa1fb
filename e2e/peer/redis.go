package main

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// redisKeys is how many keys a redis client writes in turn.
const redisKeys = 5000

// redis keeps writing keys and reading back others over its one connection. At the end it reads back all of
// them: each must hold the value that was written last.
func (c *conn) redis() error {
	r := bufio.NewReader(c.net)
	written := 0
	for ; c.due(); written++ {
		c.begin()
		n, err := c.redisSet(r, written)
		if err == nil {
			// A prime stride visits the keys in another order than they are written in.
			err = c.redisGet(r, lastWrite(written*7919%min(written+1, redisKeys), written))
		}
		if err != nil {
			return err
		}
		c.got(n)
	}
	keys := min(written, redisKeys)
	for key := range keys {
		if err := c.redisGet(r, lastWrite(key, written-1)); err != nil {
			return err
		}
	}
	c.load.mu.Lock()
	defer c.load.mu.Unlock()
	c.keys = keys
	return nil
}

// Write number n goes to key n modulo the number of keys.
func (c *conn) redisKey(n int) string { return fmt.Sprintf("client:%d:key:%d", c.id, n%redisKeys) }

func (c *conn) redisValue(n int) string {
	b := make([]byte, c.load.flags.size)
	toServer(c.id).Fill(b, uint64(n)*uint64(len(b)))
	return fmt.Sprintf("%d:%x", n, b)
}

// lastWrite is the number of the last write to a key, of writes up to newest.
func lastWrite(key, newest int) int { return key + (newest-key)/redisKeys*redisKeys }

func (c *conn) redisSet(r *bufio.Reader, n int) (int, error) {
	value := c.redisValue(n)
	answer, err := c.redisDo(r, "SET", c.redisKey(n), value)
	if err == nil && answer != "OK" {
		err = fmt.Errorf("SET %s: %q", c.redisKey(n), answer)
	}
	return len(value), err
}

func (c *conn) redisGet(r *bufio.Reader, n int) error {
	answer, err := c.redisDo(r, "GET", c.redisKey(n))
	if err != nil {
		return err
	}
	if answer != c.redisValue(n) {
		return fmt.Errorf("%w: %s is %q", mismatchError{uint64(n)}, c.redisKey(n), answer)
	}
	return nil
}

// redisDo sends a command and reads its answer, a simple or a bulk string.
func (c *conn) redisDo(r *bufio.Reader, args ...string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	n, err := io.WriteString(c.net, b.String())
	c.put(n)
	if err != nil {
		return "", err
	}
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	kind, rest := line[0], strings.TrimSpace(line[1:])
	switch kind {
	case '+':
		return rest, nil
	case '$':
		size, err := strconv.Atoi(rest)
		if err != nil || size < 0 {
			return "", fmt.Errorf("%s %s: no value", args[0], args[1])
		}
		value := make([]byte, size+2)
		_, err = io.ReadFull(r, value)
		return string(value[:size]), err
	default:
		return "", fmt.Errorf("%s: %s", args[0], strings.TrimSpace(line))
	}
}
