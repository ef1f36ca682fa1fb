// Package frozen keeps in a journal what another process has to know of a service that is about to be frozen: how to put it
// back, or to end it.
package frozen

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
	"github.com/nsmigrate/nsmigrate/restore"
	"github.com/nsmigrate/nsmigrate/transfer/journal"
)

// Files of a journal's folder.
const (
	serviceFile  = "service.json"  // checkpoint.Record
	contextsFile = "contexts.json" // checkpoint.Contexts

	// RestoreFile is a JSON object that has the [restore.Record] of a restored service as "record".
	RestoreFile = "restore.json"
)

// Save notes what a service is before it is touched. The error is a [*checkpoint.RefusedError] if another operation with
// the service was cut short: whoever brought that to its end later would let the service go on in the middle of this one.
func Save(j *journal.Journal, r *checkpoint.Record) error {
	if err := refuse(j, r.Roots); err != nil {
		return err
	}
	return j.SaveJSON(serviceFile, r)
}

// SaveContexts notes where the threads of the service are when it is stopped, nil when they run again.
func SaveContexts(j *journal.Journal, c checkpoint.Contexts) error {
	return j.SaveJSON(contextsFile, c)
}

// Load returns what was saved, nil if nothing was: then the service was not touched.
func Load(c *journal.Content) (*checkpoint.Record, error) {
	r := new(checkpoint.Record)
	if ok, err := c.LoadJSON(serviceFile, r); err != nil || !ok {
		return nil, err
	}
	_, err := c.LoadJSON(contextsFile, &r.Contexts)
	return r, err
}

func refuse(j *journal.Journal, roots []proc.Ident) error {
	others, err := j.Others(serviceFile, RestoreFile)
	if err != nil {
		return err
	}
	var problems []checkpoint.Problem
	for _, c := range others {
		theirs, err := processes(c)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it came to its end meanwhile
		}
		if err != nil {
			return err
		}
		shared := slices.ContainsFunc(roots, func(id proc.Ident) bool { return slices.Contains(theirs, id) })
		if shared && !c.Rebooted() && !c.Busy { // else somebody brings it to its end
			problems = append(problems, checkpoint.Problem{
				Kind: "service", Object: fmt.Sprintf("process %d", roots[0].PID),
				Reason: fmt.Sprintf("%s %s of it was cut short", c.Role.Operation(), c.ID),
				Remedy: fmt.Sprintf("`nsmigrate recover %s` brings that to its end", c.ID),
			})
		}
	}
	return checkpoint.Refuse("dump", problems)
}

// processes are those that an operation would let go on.
func processes(c *journal.Content) ([]proc.Ident, error) {
	r, err := Load(c)
	if err != nil {
		return nil, err
	}
	var restored struct {
		Record *restore.Record `json:"record"`
	}
	if _, err := c.LoadJSON(RestoreFile, &restored); err != nil {
		return nil, err
	}
	var list []proc.Ident
	if r != nil {
		list = append(list, r.Roots...)
	}
	if restored.Record != nil {
		list = append(list, restored.Record.Processes...)
	}
	return list, nil
}
