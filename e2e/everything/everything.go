// Package everything has a network namespace with all kinds of links and objects at once, for tests that move it.
package everything

import _ "embed"

// Script is a shell script that configures the namespace in which it runs. With FULL=1 in its environment it makes also
// what only a kernel with all kinds has.
//
//go:embed everything.sh
var Script string
