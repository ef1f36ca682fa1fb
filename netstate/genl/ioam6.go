package genl

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// linux/ioam6_genl.h.
const (
	ioam6AddNamespace   = 1
	ioam6DumpNamespaces = 3
	ioam6AddSchema      = 4
	ioam6DumpSchemas    = 6
	ioam6SetSchema      = 7

	ioam6AttrNSID     = 1
	ioam6AttrNSData   = 2
	ioam6AttrNSWide   = 3
	ioam6AttrSchema   = 4
	ioam6AttrSchemaOf = 5 // IOAM6_ATTR_SC_DATA
)

// ioam6 carries the namespaces and schemas of in-situ OAM, and which namespace uses which schema.
func ioam6() family {
	return family{
		number: familyIOAM6, name: "IOAM6", word: "ioam", capture: captureIOAM6,
		nests: map[byte]rawnl.Nest{ioam6AddNamespace: rawnl.Flat(), ioam6AddSchema: rawnl.Flat(), ioam6SetSchema: rawnl.Flat()},
	}
}

func captureIOAM6(ctx context.Context, c conn) ([]rawnl.Message, error) {
	namespaces, err := c.dump(ctx, ioam6DumpNamespaces)
	if err != nil {
		return nil, fmt.Errorf("dump namespaces: %w", err)
	}
	schemas, err := c.dump(ctx, ioam6DumpSchemas)
	if err != nil {
		return nil, fmt.Errorf("dump schemas: %w", err)
	}
	slices.SortFunc(namespaces, bytes.Compare) // the kernel shows them in the order of a hash table
	slices.SortFunc(schemas, bytes.Compare)
	var msgs, uses []rawnl.Message
	for _, attrs := range namespaces {
		msgs = append(msgs, c.message(ioam6AddNamespace, only(attrs, ioam6AttrNSID, ioam6AttrNSData, ioam6AttrNSWide)))
		if rawnl.Get(attrs, ioam6AttrSchema) != nil {
			uses = append(uses, c.message(ioam6SetSchema, only(attrs, ioam6AttrNSID, ioam6AttrSchema)))
		}
	}
	for _, attrs := range schemas {
		msgs = append(msgs, c.message(ioam6AddSchema, only(attrs, ioam6AttrSchema, ioam6AttrSchemaOf)))
	}
	return slices.Concat(msgs, uses), nil
}
