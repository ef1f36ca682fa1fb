package main

import (
	"fmt"
	"runtime"

	"github.com/urfave/cli/v2"

	"github.com/nsmigrate/nsmigrate/checkpoint"
)

func versionCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:        "version",
		Usage:       "print the version of nsmigrate and of the image format",
		Description: description("Prints versions. `nsmigrate check` tells which criu is used.", []string{"nsmigrate version"}),
		Action: func(*cli.Context) error {
			if u.json {
				return printJSON(u.out, map[string]any{
					"version": version, "format": checkpoint.FormatMajor,
					"go": runtime.Version(), "arch": runtime.GOARCH,
				})
			}
			_, err := fmt.Fprintf(u.out, "nsmigrate %s (image format %d, %s, %s)\n", version, checkpoint.FormatMajor, runtime.Version(), runtime.GOARCH)
			return err
		},
	}
}
