package netstate

import (
	"fmt"

	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// text renders an operation in the words of ip(8).
func (o *Op) text(names linkNames) string {
	switch {
	case o.Tun != nil:
		return fmt.Sprintf("%s link %s (tun)", o.Verb, o.Tun.Name)
	case o.Sysctl != nil:
		return fmt.Sprintf("%s sysctl %s=%s", o.Verb, sysctlName(o.Sysctl.Path), o.Sysctl.Value)
	}
	return fmt.Sprintf("%s %s %s", o.Verb, o.Kind, describe(o.Kind, o.Object, names))
}

func describe(kind Kind, m rawnl.Message, names linkNames) string {
	if kind == KindLink {
		if l, err := parseLink(m); err == nil {
			return fmt.Sprintf("%s kind %s", l.name, l.kind)
		}
	}
	return fmt.Sprintf("%x", m.Data)
}
