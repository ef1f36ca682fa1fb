package restore

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/checkpoint/sidecar"
	"github.com/nsmigrate/nsmigrate/netstate"
)

// What nsmigrate itself wrote into an image comes from another host and is believed in nothing: what does not hold
// together is [checkpoint.ErrDamaged].

// ReadState reads the network state of the service in an image. The error is [checkpoint.ErrDamaged] if it makes no sense.
func ReadState(dir string) (*netstate.State, error) {
	f, err := os.Open(filepath.Join(dir, checkpoint.StateFile))
	if err != nil {
		return nil, fmt.Errorf("open network state: %w", err)
	}
	defer f.Close()
	state, err := netstate.ReadState(f)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", checkpoint.ErrDamaged, checkpoint.StateFile, err)
	}
	if err := state.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", checkpoint.ErrDamaged, checkpoint.StateFile, err)
	}
	return state, nil
}

// openImage reads the side-car.
func (r *Restoration) openImage(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, checkpoint.SocketsFile))
	if err != nil {
		return fmt.Errorf("open socket options: %w", err)
	}
	if r.car, err = sidecar.Decode(b); err != nil {
		return fmt.Errorf("%w: %s: %w", checkpoint.ErrDamaged, checkpoint.SocketsFile, err)
	}
	return nil
}

// StoreAs returns the name under which a file of an image that comes after [Restoration.Build] is stored.
func StoreAs(name string) string { return criu.StoreAs(name) }
