package conntrack

import "github.com/nsmigrate/nsmigrate/netstate/rawnl"

// Change returns all requests of an update.
func Change(gone, come, next []rawnl.Message) ([]rawnl.Message, error) {
	p, err := change(gone, come, next)
	if err != nil {
		return nil, err
	}
	var all []rawnl.Message
	for _, list := range [][]rawnl.Message{p.forget, p.deletes, p.updates, p.creates, p.expects} {
		all = append(all, list...)
	}
	return all, nil
}
