package transport

import (
	"bufio"
	"crypto/x509"
	"fmt"
	"os"
	"strings"
)

// names are who may come.
type names []string

// loadNames adds the names of a file, one a line, to others. # begins a comment.
func loadNames(given []string, file string) (names, error) {
	all := append(names(nil), given...)
	if file == "" {
		return all, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("list of names: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if line = strings.TrimSpace(line); line != "" {
			all = append(all, line)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("list of names %s: %w", file, err)
	}
	return all, nil
}

// find returns the first name of a certificate that is on the list.
func (n names) find(c *x509.Certificate) (string, bool) {
	for _, name := range namesOf(c) {
		for _, allowed := range n {
			if matches(allowed, name) {
				return name, true
			}
		}
	}
	return "", false
}

// matches compares a name with one of the list: "*" is any, "*.example.org" any with one label more, others are
// themselves. Case doesn't matter in names of hosts, which is what all but URIs are.
func matches(allowed, name string) bool {
	if strings.Contains(allowed, "://") || strings.Contains(name, "://") {
		return allowed == name || allowed == "*"
	}
	if rest, ok := strings.CutPrefix(allowed, "*."); ok {
		label, domain, found := strings.Cut(name, ".")
		return found && label != "" && strings.EqualFold(domain, rest)
	}
	return allowed == "*" || strings.EqualFold(allowed, name)
}
