package checkpoint

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// follower digests memory while CRIU writes it, on a core that has nothing else to do: afterwards that would take as
// long again as CRIU took.
type follower struct {
	dir   string
	told  ChunkFunc             // may be nil
	files map[string][]chunkSum // by the entry's name
	quit  chan struct{}
	done  chan struct{}
}

const followEvery = 2 * time.Millisecond

// follow begins to digest the memory below dir, and to tell told of it.
func follow(dir string, told ChunkFunc) *follower {
	f := &follower{dir: dir, told: told, files: make(map[string][]chunkSum), quit: make(chan struct{}), done: make(chan struct{})}
	if runtime.GOMAXPROCS(0) < 2 {
		close(f.done)
		return f
	}
	go f.run()
	return f
}

// finish ends it, wherever it is, and returns how far it came with which files.
func (f *follower) finish() map[string][]chunkSum {
	close(f.quit)
	<-f.done
	return f.files
}

func (f *follower) run() {
	defer close(f.done)
	ticker := time.NewTicker(followEvery)
	defer ticker.Stop()
	buf := make([]byte, ChunkSize)
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

// read digests the chunks that were appended to a file. What can't be read is left to whoever reads it next.
func (f *follower) read(p string, buf []byte) {
	name := filepath.ToSlash(strings.TrimPrefix(p, f.dir+string(filepath.Separator)))
	file, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return
	}
	r := &chunkReader{file: file, name: name, told: f.told}
	for k := len(f.files[name]); int64(k+1)*ChunkSize <= info.Size(); k++ {
		select {
		case <-f.quit:
			return
		default:
		}
		sum, err := r.read(k, ChunkSize, buf)
		if err != nil {
			return
		}
		f.files[name] = append(f.files[name], sum)
	}
}
