//go:build !faults

package main

import (
	"context"

	"github.com/nsmigrate/nsmigrate/transfer/handover"
)

// faults is where the builds that tests use stop or die.
func faults(func(string) string) func(context.Context, handover.Step) error { return nil }
