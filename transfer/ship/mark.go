package ship

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

// unnamed says that a file system may be on storage that other hosts have, and that nobody can tell.
func (v volume) unnamed() bool { return v.remote && v.name == "" }

// Mark makes the directories for staging on file systems of which nobody can tell whether the source sees them too: if it
// does, it finds them ([Source.FindMarks]), as their names are the migration's. It comes before [Destination.Stage].
func (d *Destination) Mark(ctx context.Context) error {
	for _, n := range d.entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if n.unit == nil {
			continue
		}
		h := n.unit.hidden
		st, err := d.root.stat(h.dir[1:])
		if err != nil {
			return fmt.Errorf("mark %s: %w", h.dir, err)
		}
		v, err := d.volumes.of(d.root, h.dir[1:], &st)
		if err == nil && v.unnamed() {
			err = d.hide(h)
		}
		if err != nil {
			return fmt.Errorf("mark %s: %w", h.dir, err)
		}
	}
	return nil
}

// FindMarks looks for what [Destination.Mark] has made of the migration with an ID. Where there is something, both hosts
// see the same files: one would take them away from the other, so that they must not travel.
func (s *Source) FindMarks(id string) ([]checkpoint.Problem, error) {
	from := make(map[string]string) // by directory
	for _, t := range s.tracked {
		if t.unnamed {
			from[path.Dir(t.Path)] = t.from
		}
	}
	var problems []checkpoint.Problem
	for _, dir := range slices.Sorted(maps.Keys(from)) {
		base, err := s.base(from[dir])
		if err == nil {
			_, err = base.stat(path.Join(dir, hiddenPrefix+id)[1:])
		}
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look whether the destination sees %s: %w", dir, err)
		}
		problems = append(problems, checkpoint.Problem{
			Kind: "file", Object: dir, Reason: "both hosts see it, so that nothing in it may travel",
			Remedy: "leave it where it is with --files none, and name what has to travel with --ship",
		})
	}
	return problems, nil
}
