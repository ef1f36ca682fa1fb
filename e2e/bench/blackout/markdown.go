package blackout

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Markdown is the table of the README, with the pictures that are in a directory.
func (r Results) Markdown(machine, pictures string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured on %s. Where the load is above 1 at the begin, the machine did much else at the same time, and all waits are\nlonger for it.\n\n", machine)
	b.WriteString("| | moved with | runs | longest wait of a client, ms: median (p99; min-max) | nsmigrate is shorter by | connections that survived |\n|---|---|---|---|---|---|\n")
	for i, c := range r.Cells {
		scene := ""
		if i == 0 || c.Scene != r.Cells[i-1].Scene {
			scene = c.Scene
		}
		if len(c.Runs) == 0 {
			if len(c.Failures) == 0 { // it was cut short
				continue
			}
			fmt.Fprintf(&b, "| %s | %s | 0 | not measured: %s | | |\n", scene, c.Mover, cellText(c.Failures[0]))
			continue
		}
		gap := c.gaps()
		if c.Load.Connections > 1 {
			gap = c.worstGaps()
		}
		alive, total, rst := c.survived()
		fate := "all"
		if alive < total {
			fate = fmt.Sprintf("%.1f %%", 100*float64(alive)/float64(total))
		}
		if rst > 0 {
			fate += fmt.Sprintf(", %d RST", rst)
		}
		if n := len(c.Failures); n > 0 {
			fate += fmt.Sprintf("; failed %d times", n)
		}
		shorter := ""
		if ours := r.cell(c.Scene, reference); ours != nil && len(ours.Runs) > 0 && !strings.HasPrefix(c.Mover, "nsmigrate") {
			base := ours.gaps()
			if c.Load.Connections > 1 {
				base = ours.worstGaps()
			}
			x := ratioOf(base, gap)
			shorter = fmt.Sprintf("%sx (%s-%s)", number(x.middle), number(x.low), number(x.high))
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %s (%s; %s-%s) | %s | %s |\n", scene, c.Mover, len(c.Runs),
			number(gap.median()), number(gap.at(0.99)), number(gap.min()), number(gap.max()), shorter, fate)
	}
	b.WriteString("\nThe longest wait is that of the worst connection in each move.\n")
	for _, t := range r.moreTables() {
		b.WriteString("\n" + t.markdown())
	}
	for _, name := range slices.Sorted(maps.Keys(r.Pictures())) {
		fmt.Fprintf(&b, "\n![%s](%s/%s)\n", strings.TrimSuffix(name, ".svg"), pictures, name)
	}
	return b.String()
}

// criuError is what CRIU says of an error, behind where in its source.
var criuError = regexp.MustCompile(`Error \([^)]*\): (.*)`)

// cellText is the line of a text that tells most, in a form that doesn't end a table's cell.
func cellText(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	for _, m := range criuError.FindAllStringSubmatch(s, -1) {
		if !strings.HasPrefix(m[1], "rlimit:") { // which is no error
			line = "criu: " + m[1]
			break
		}
	}
	return strings.ReplaceAll(line, "|", "\\|")
}
