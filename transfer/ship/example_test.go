package ship_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/nsmigrate/nsmigrate/transfer/ship"
)

// How a service's source and its destination use the package, without the connection between them.
func Example() {
	if err := example(); err != nil {
		fmt.Println(err)
	}
	// Output:
	// 1 file wanted, 3 bytes
	// state: new
}

func example() error {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "ship-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b") // the two hosts' file systems
	for host, content := range map[string]string{a: "new", b: "old"} {
		if err := os.MkdirAll(filepath.Join(host, "srv/app"), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(host, "srv/app/state"), []byte(content), 0o600); err != nil {
			return err
		}
	}

	// Source, Service.Offer: the index is an entry of the offer.
	roots := []ship.Root{{Path: "/srv/app"}} // and those that the trees hold open
	src, problems, err := ship.Survey(ctx, roots, ship.SurveyOptions{Root: a})
	if err != nil || len(problems) > 0 {
		return fmt.Errorf("%w %v", err, problems)
	}
	defer src.Close()
	var index bytes.Buffer
	if err := src.Index().Encode(&index); err != nil {
		return err
	}

	// Destination, Host.Check: wants go back to the source with READY.
	var journal []ship.Change
	dst, err := ship.NewDestination(ship.Options{
		Root: b, ID: "00112233445566778899aabbccddeeff",
		Record: func(c ship.Change) error { journal = append(journal, c); return nil }, // Journal.Append("files", c)
	})
	if err != nil {
		return err
	}
	defer dst.Close()
	x, err := ship.ReadIndex(&index, ship.Limits{})
	if err != nil {
		return err
	}
	wants, problems, err := dst.Compare(ctx, x)
	if err != nil || len(problems) > 0 {
		return fmt.Errorf("%w %v", err, problems)
	}
	fmt.Printf("%d file wanted, %d bytes\n", len(wants.Files), wants.Bytes)

	// Before the freeze, while the destination builds the namespace. The connection's SendEntry is the SendFunc;
	// Host.Store hands the entries to Stage and Update by their names.
	send := func(ctx context.Context, name string, _ int64, r io.Reader) error {
		if name == ship.DataEntry {
			return dst.Stage(ctx, r)
		}
		return dst.Update(ctx, r)
	}
	if _, err := src.Send(ctx, wants, send); err != nil {
		return err
	}

	// Service.Freeze: the trees are frozen; CRIU can write its images meanwhile.
	if _, err := src.Update(ctx, roots, send); err != nil {
		return err
	}

	// Host.Prepare, before CRIU restores the trees, which open the files.
	if err := dst.Install(ctx); err != nil {
		return err
	}

	// Host.Settle; Host.Undo calls ship.Undo with the same arguments, and so does recover.
	if err := ship.Commit(ctx, b, journal); err != nil {
		return err
	}
	state, err := os.ReadFile(filepath.Join(b, "srv/app/state"))
	fmt.Printf("state: %s\n", state)
	return err
}
