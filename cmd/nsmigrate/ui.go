package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// ui is how the program speaks. Results go to out, everything else to err; in JSON each of the two carries
// at most one document: the result on out, the error on err.
type ui struct {
	in       io.Reader
	out, err io.Writer
	command  string // the command's name, once it is known
	json     bool
	width    func() int // columns of the terminal that err is; 0 if it is none
}

func newUI(in io.Reader, out, errOut io.Writer) *ui {
	u := &ui{in: in, out: out, err: errOut, width: func() int { return 0 }}
	if f, ok := errOut.(*os.File); ok && isTerminal(errOut) {
		u.width = func() int {
			w, _, err := term.GetSize(int(f.Fd()))
			if err != nil || w <= 0 {
				return 80
			}
			return w
		}
	}
	return u
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// say tells people something that is no result.
func (u *ui) say(format string, args ...any) {
	if !u.json {
		fmt.Fprintf(u.err, u.clearLine()+format+"\n", args...)
	}
}

// printJSON writes a result document.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// problemJSON is what programs learn about an error.
type problemJSON struct {
	Class    string               `json:"class"`
	Status   status               `json:"status"`
	Message  string               `json:"message"`
	Hint     string               `json:"hint,omitempty"`
	Problems []checkpoint.Problem `json:"problems,omitempty"`
}

// fail reports an error, if there is one, and returns the exit status.
func (u *ui) fail(err error) int {
	if err == nil {
		return int(statusOK)
	}
	if service, ok := errors.AsType[serviceExit](err); ok {
		return int(service)
	}
	if errors.Is(err, errDiffers) {
		return int(statusError)
	}
	s := statusOf(err)
	if u.json {
		name, _ := s.describe()
		p := problemJSON{Class: name, Status: s, Message: err.Error(), Hint: hintOf(err)}
		if refused, ok := errors.AsType[*checkpoint.RefusedError](err); ok {
			p.Message, p.Problems = refused.Op+" refused, nothing was changed", refused.Problems
		}
		_ = printJSON(u.err, map[string]problemJSON{"error": p})
		return int(s)
	}
	text := err.Error()
	_, interrupted := errors.AsType[*interruptedError](err)
	if !interrupted && !strings.HasPrefix(text, u.command) { // the library's errors begin with the operation
		text = u.command + ": " + text
	}
	fmt.Fprintf(u.err, "%snsmigrate: %s\n", u.clearLine(), text)
	if hint := hintOf(err); hint != "" {
		fmt.Fprintf(u.err, "  hint: %s\n", hint)
	}
	return int(s)
}

// hintOf returns what the user can do about an error, if anyone knows.
func hintOf(err error) string {
	var remedied interface{ Remedy() string }
	if errors.As(err, &remedied) {
		return remedied.Remedy()
	}
	if refused, ok := errors.AsType[*checkpoint.RefusedError](err); ok {
		return allowHint(refused.Problems)
	}
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return "run it as root, for example with sudo"
	}
	return ""
}

// allowHint tells how to go on without what can't be carried, if that is up to the user.
func allowHint(problems []checkpoint.Problem) string {
	var kinds []string
	for _, p := range problems {
		if p.Loss && !slices.Contains(kinds, p.Kind) {
			kinds = append(kinds, p.Kind)
		}
	}
	if kinds == nil {
		return ""
	}
	return "to go on without what can be left behind: --allow-loss " + strings.Join(kinds, ",")
}

// serviceExit is the exit status of a restored service that was waited for.
type serviceExit int

func (e serviceExit) Error() string { return fmt.Sprintf("the service ended with status %d", int(e)) }

// clearLine is what ends a status line on a terminal.
func (u *ui) clearLine() string {
	if u.width() == 0 {
		return ""
	}
	return "\r\x1b[K"
}

// progress returns the reporter of a long operation, and a function that ends it. Where nobody watches the
// reporter is nil.
func (u *ui) progress(title string) (checkpoint.Progress, func()) {
	if u.json || u.width() == 0 {
		return nil, func() {}
	}
	l := &statusLine{u: u, title: title, begun: time.Now(), quit: make(chan struct{}), gone: make(chan struct{})}
	go l.draw()
	return l, func() {
		close(l.quit)
		<-l.gone
	}
}

// statusLine shows the phase of an operation on one line of a terminal. It draws from a goroutine of its
// own: a terminal that is stopped with Ctrl-S must not hold up an operation that has a service frozen.
type statusLine struct {
	u          *ui
	title      string
	begun      time.Time
	quit, gone chan struct{}

	mu          sync.Mutex
	phase       string
	done, total int64
}

// Phase is [checkpoint.Progress].
func (l *statusLine) Phase(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.phase, l.done, l.total = name, 0, 0
}

// Bytes is [checkpoint.Progress].
func (l *statusLine) Bytes(done, total int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done, l.total = done, total
}

func (l *statusLine) draw() {
	defer close(l.gone)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			fmt.Fprint(l.u.err, l.u.clearLine()+l.text(l.u.width()-1, time.Since(l.begun)))
		case <-l.quit:
			fmt.Fprint(l.u.err, l.u.clearLine())
			return
		}
	}
}

// text is the line, cut to a width.
func (l *statusLine) text(width int, elapsed time.Duration) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	parts := []string{l.title + ":"}
	if l.phase != "" {
		parts = append(parts, l.phase)
	}
	switch {
	case l.total > 0:
		parts = append(parts, checkpoint.Size(l.done), "of", checkpoint.Size(l.total))
	case l.done > 0:
		parts = append(parts, checkpoint.Size(l.done))
	}
	parts = append(parts, fmt.Sprintf("(%.1f s)", elapsed.Seconds()))
	line := []rune(strings.Join(parts, " "))
	return string(line[:min(len(line), max(width, 0))])
}

// span renders a duration with the digits that matter.
func span(d time.Duration) string {
	switch {
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d >= time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%d us", d.Microseconds())
}

// count renders a number with its noun: 1 tree, 2 trees.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
