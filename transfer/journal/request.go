package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// requestFile is where a process leaves a word for the one that works on a journal, in the journal's folder. It counts as
// long as the file is locked: what a process that has gone wanted is nobody's wish any more.
const requestFile = "request"

// taken stands behind a word that was taken.
const taken = "\ntaken\n"

// maxWord bounds a word, in bytes.
const maxWord = 64

// Request is a word for the process that works on a journal.
type Request struct {
	file *os.File
	word string
}

// Request leaves a word for the process that works on a journal, until the request is closed. Errors: [ErrBusy] if there is
// another request, fs.ErrNotExist if there is no such journal.
func (d Dir) Request(id string, role Role, word string) (_ *Request, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("leave a word for %s %s: %w", role.Operation(), id, err)
		}
	}()
	if word == "" || len(word) > maxWord {
		return nil, fmt.Errorf("%q is no word", word)
	}
	name := folderName(id, role)
	if _, _, ok := parseFolderName(name); !ok {
		return nil, fmt.Errorf("%q is no ID", name)
	}
	f, err := os.OpenFile(filepath.Join(d.path(), name, requestFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lock(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := f.WriteAt([]byte(word), 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Request{file: f, word: word}, nil
}

// Taken reports whether the word was taken by [Journal.Take]. It can still be asked for when the journal is finished. A nil
// request never is.
func (r *Request) Taken() bool {
	if r == nil {
		return false
	}
	b := make([]byte, maxWord+len(taken))
	n, _ := r.file.ReadAt(b, 0)
	return string(b[:n]) == r.word+taken
}

// Close takes back a word that was not taken.
func (r *Request) Close() error { return r.file.Close() }

// Requested returns the word that another process has left for this one and waits by, "" if there is none.
func (j *Journal) Requested() string {
	f, err := os.Open(filepath.Join(j.path, requestFile))
	if err != nil {
		return ""
	}
	defer f.Close()
	if waits, err := locked(f); err != nil || !waits {
		return ""
	}
	b := make([]byte, maxWord+1)
	n, _ := f.ReadAt(b, 0)
	if n > maxWord || bytes.Contains(b[:n], []byte("\n")) {
		return ""
	}
	return string(b[:n])
}

// Take accepts the word that was [Journal.Requested]. Whoever left it knows that it will be done.
func (j *Journal) Take(word string) error {
	f, err := os.OpenFile(filepath.Join(j.path, requestFile), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt([]byte(taken), int64(len(word)))
	return err
}
