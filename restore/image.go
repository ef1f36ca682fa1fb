package restore

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/sidecar"
	"github.com/nsmigrate/nsmigrate/netstate"
)

// image is what a restore reads from an image.
type image struct {
	dir      string
	manifest *checkpoint.Manifest
	state    *netstate.State
	car      *sidecar.Sidecar
}

// open reads the parts of an image that nsmigrate itself wrote. They come from another host and are
// believed in nothing: what does not hold together is [checkpoint.ErrDamaged].
func open(dir string, m *checkpoint.Manifest) (*image, error) {
	img := &image{dir: dir, manifest: m}
	f, err := os.Open(filepath.Join(dir, checkpoint.StateFile))
	if err != nil {
		return nil, fmt.Errorf("open network state: %w", err)
	}
	defer f.Close()
	if img.state, err = netstate.ReadState(f); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", checkpoint.ErrDamaged, checkpoint.StateFile, err)
	}
	if err := img.state.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", checkpoint.ErrDamaged, checkpoint.StateFile, err)
	}
	b, err := os.ReadFile(filepath.Join(dir, checkpoint.SocketsFile))
	if err != nil {
		return nil, fmt.Errorf("open socket options: %w", err)
	}
	if img.car, err = sidecar.Decode(b); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", checkpoint.ErrDamaged, checkpoint.SocketsFile, err)
	}
	return img, nil
}
