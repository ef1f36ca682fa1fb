package checkpoint

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// begun is the digest of the beginning of a file that is only ever appended to.
type begun struct {
	size int64
	hash hash.Hash
}

// follower digests memory while CRIU writes it, on a core that has nothing else to do: afterwards that would take as
// long again as CRIU took.
type follower struct {
	dir   string
	files map[string]*begun // by the entry's name
	quit  chan struct{}
	done  chan struct{}
}

const (
	followEvery = 2 * time.Millisecond
	followFrom  = 1 << 20 // bytes of a file that is worth it
)

// follow begins to digest the memory below dir.
func follow(dir string) *follower {
	f := &follower{dir: dir, files: make(map[string]*begun), quit: make(chan struct{}), done: make(chan struct{})}
	if runtime.GOMAXPROCS(0) < 2 {
		close(f.done)
		return f
	}
	go f.run()
	return f
}

// finish ends it, wherever it is, and returns how far it came with which files.
func (f *follower) finish() map[string]*begun {
	close(f.quit)
	<-f.done
	return f.files
}

func (f *follower) run() {
	defer close(f.done)
	ticker := time.NewTicker(followEvery)
	defer ticker.Stop()
	buf := make([]byte, chunk)
	for {
		select {
		case <-f.quit:
			return
		case <-ticker.C:
		}
		for _, depth := range []string{".", "*"} { // of the first tree, and of others: see treeDir
			paths, _ := filepath.Glob(filepath.Join(f.dir, TreesDir, depth, "pages-*.img")) // the pattern is well-formed
			for _, p := range paths {
				f.read(p, buf)
			}
		}
	}
}

// read digests what was appended to a file. What can't be read is left to whoever reads it next.
func (f *follower) read(p string, buf []byte) {
	name := filepath.ToSlash(strings.TrimPrefix(p, f.dir+string(filepath.Separator)))
	file, err := os.Open(p)
	if err != nil {
		return
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || info.Size() < followFrom {
		return
	}
	b := f.files[name]
	if b == nil {
		b = &begun{hash: sha256.New()}
		f.files[name] = b
	}
	for {
		select {
		case <-f.quit:
			return
		default:
		}
		n, err := file.ReadAt(buf, b.size)
		b.hash.Write(buf[:n])
		b.size += int64(n)
		if n == 0 || err != nil && !errors.Is(err, io.EOF) {
			return
		}
	}
}
