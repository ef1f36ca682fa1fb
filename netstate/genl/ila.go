package genl

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// linux/ila.h.
const (
	ilaAdd = 1
	ilaGet = 3

	ilaAttrLocator = 1
	ilaAttrMatch   = 3 // ILA_ATTR_LOCATOR_MATCH
	ilaAttrIndex   = 4
	ilaAttrPad     = 6
)

// ila carries the translations of identifier locator addressing. Those of routes belong to the routes.
func ila() family {
	return family{
		number: familyILA, name: "ila", word: "ila", nests: map[byte]rawnl.Nest{ilaAdd: rawnl.Flat()},
		capture: func(ctx context.Context, c conn) ([]rawnl.Message, error) {
			mappings, err := c.dump(ctx, ilaGet)
			if err != nil {
				return nil, fmt.Errorf("dump translations: %w", err)
			}
			slices.SortFunc(mappings, bytes.Compare) // the kernel shows them in the order of a hash table
			msgs := make([]rawnl.Message, len(mappings))
			for i, attrs := range mappings {
				msgs[i] = c.message(ilaAdd, without(attrs, ilaAttrPad))
			}
			return msgs, nil
		},
		describe: func(m rawnl.Message, name func(int32) string) string {
			attrs := attrsOf(m)
			text := "from " + hex.EncodeToString(rawnl.Get(attrs, ilaAttrMatch)) + " to " + hex.EncodeToString(rawnl.Get(attrs, ilaAttrLocator))
			if index := int32(rawnl.Uint32(rawnl.Get(attrs, ilaAttrIndex))); index != 0 {
				text += " dev " + name(index)
			}
			return text + " " + describeRest(attrs, ilaAttrMatch, ilaAttrLocator, ilaAttrIndex)
		},
	}
}
