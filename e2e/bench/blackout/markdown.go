package blackout

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Markdown is what the README says of the results, with the pictures that are in a directory.
func (r Results) Markdown(command, machine, pictures string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured with %s\non %s.\n", command, machine)
	if r.Took > 0 {
		fmt.Fprintf(&b, "It took %s; a round trip between the hosts is %s ms. ", r.Took.Round(time.Second), number(r.RTT))
	}
	b.WriteString("Where the load is above 1 at the begin, the machine did much else at the\nsame time, and all waits are longer for it.\n")
	there := r.Pictures()
	picture := func(name, title string) {
		if _, ok := there[name]; ok {
			fmt.Fprintf(&b, "\n![%s](%s/%s)\n", title, pictures, name)
		}
	}
	if t := r.mainTable(); len(t.rows) > 0 {
		b.WriteString("\n" + t.markdown())
		b.WriteString("\nThe longest wait is that of the worst connection in each move. Tools that take seconds for a move have fewer runs.\n")
		picture("distribution.svg", "How long a client waits")
	}
	for _, t := range r.moreTables() {
		fmt.Fprintf(&b, "\n**%s.** %s\n\n%s", t.title, t.note, t.markdown())
		picture(t.picture, t.title)
	}
	return b.String()
}

// mainTable compares all movers in the scenes that say most.
func (r Results) mainTable() table {
	t := table{head: []string{"", "moved with", "runs", "longest wait of a client, ms: median (p99; min-max)", "nsmigrate is shorter by", "connections that survived"}}
	last := ""
	for _, c := range r.Cells {
		if !isMain(c.Scene) || len(c.Runs) == 0 && len(c.Failures) == 0 { // it was cut short
			continue
		}
		scene := ""
		if c.Scene != last {
			scene, last = c.Scene, c.Scene
		}
		if len(c.Runs) == 0 {
			t.rows = append(t.rows, []string{scene, c.Mover, "0", "not measured: " + cellText(c.Failures[0]), "", ""})
			continue
		}
		wait, shorter := c.worstGaps(), ""
		if ours := r.cell(c.Scene, reference); ours.known() && !c.tellsBlackout() {
			x := ratioOf(ours.worstGaps(), wait)
			shorter = fmt.Sprintf("%sx (%s-%s)", number(x.middle), number(x.low), number(x.high))
		}
		t.rows = append(t.rows, []string{
			scene, c.Mover, fmt.Sprint(len(c.Runs)),
			fmt.Sprintf("%s (%s; %s-%s)", number(wait.median()), number(wait.at(0.99)), number(wait.min()), number(wait.max())), shorter, c.fate(),
		})
	}
	return t
}

// fate says what became of the connections.
func (c Cell) fate() string {
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
	return fate
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
