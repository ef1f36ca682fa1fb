package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/nsmigrate/nsmigrate/checkpoint"
	"github.com/nsmigrate/nsmigrate/checkpoint/criu"
	"github.com/nsmigrate/nsmigrate/netstate"
)

// view is what there is to see of an image or of a live namespace.
type view struct {
	Image   *checkpoint.Manifest `json:"image,omitempty"` // nil of a live namespace
	NetNS   netnsView            `json:"netns"`
	Trees   []treeView           `json:"trees"`
	Unheld  []criu.SocketView    `json:"unheld_sockets,omitempty"` // of a live namespace: sockets of no process
	Network *netstate.State      `json:"network"`
}

type netnsView struct {
	Name  string `json:"name,omitempty"`
	Inode uint64 `json:"inode"`
}

type treeView struct {
	Root int `json:"root"` // as the tree sees it
	*criu.TreeView
}

// text renders the view for people.
func (v *view) text(w io.Writer) error {
	var b strings.Builder
	if v.Image != nil {
		manifestText(&b, v.Image)
	} else {
		fmt.Fprintf(&b, "live namespace %s, net:[%d], %s\n", cmp.Or(v.NetNS.Name, "without a name"), v.NetNS.Inode, count(len(v.Trees), "process tree", "process trees"))
	}
	for i, t := range v.Trees {
		var facts *checkpoint.Tree
		if v.Image != nil {
			facts = &v.Image.Trees[i]
		}
		t.text(&b, facts)
	}
	if v.Unheld != nil {
		b.WriteString("\nSockets that no process holds\n")
		socketText(&b, v.Unheld)
	}
	b.WriteString("\n")
	if err := netstate.Render(&b, v.Network); err != nil {
		return err
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// columns writes aligned rows, indented, without blanks at the ends of lines.
func columns(b *strings.Builder, rows [][]string) {
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(table, strings.Join(r, "\t"))
	}
	table.Flush()
	for line := range strings.Lines(text.String()) {
		b.WriteString("  " + strings.TrimRight(line, " \n") + "\n")
	}
}

func manifestText(b *strings.Builder, m *checkpoint.Manifest) {
	source := "stopped at the dump: its connections can go on"
	switch {
	case m.Source == checkpoint.SourceRunning:
		source = "ran on after the dump: a snapshot, whose established connections are closed on restore"
	case m.TCPClose:
		source = "stopped at the dump; established connections were not saved"
	}
	rows := [][]string{
		{"format", m.Format.String()},
		{"of", cmp.Or(m.Target.NetNS, "a namespace without a name") + ", " + count(len(m.Trees), "process tree", "process trees")},
		{"source", source},
		{"made", m.Created.UTC().Format("2006-01-02 15:04:05 UTC") + " by " + m.Tool},
		{"on", fmt.Sprintf("%s, Linux %s %s, criu %s", m.Host.Name, m.Host.Kernel, m.Host.Arch, m.Host.CRIU)},
		{"size", fmt.Sprintf("%s in %s, all verified", checkpoint.Size(m.Bytes()), count(len(m.Entries), "file", "files"))},
	}
	for _, l := range m.Losses {
		rows = append(rows, []string{"without", l.String()})
	}
	fmt.Fprintf(b, "image %s\n", m.ID)
	columns(b, rows)
}

// text renders a tree; facts are what the manifest of an image knows of it, or nil.
func (t *treeView) text(b *strings.Builder, facts *checkpoint.Tree) {
	fmt.Fprintf(b, "\nProcess tree %d, %s of memory\n", t.Root, checkpoint.Size(t.Memory))
	rows := [][]string{{"PID", "PPID", "SID", "STATE", "THREADS", "MEMORY", "COMMAND"}}
	for _, p := range t.Tasks {
		command := strings.Join(p.Cmdline, " ")
		if command == "" {
			command = "[" + p.Comm + "]"
		}
		rows = append(rows, []string{
			strconv.Itoa(p.PID), strconv.Itoa(p.PPID), strconv.Itoa(p.SID), p.State, strconv.Itoa(len(p.Threads)), checkpoint.Size(p.Memory), command,
		})
	}
	columns(b, rows)
	if facts != nil {
		factsText(b, facts)
	}
	if len(t.Sockets) > 0 {
		fmt.Fprintf(b, "\nSockets of tree %d\n", t.Root)
		socketText(b, t.Sockets)
	}
}

func socketText(b *strings.Builder, list []criu.SocketView) {
	rows := [][]string{{"PROTO", "STATE", "RECV-Q", "SEND-Q", "LOCAL", "REMOTE", "PID/FD"}}
	for _, s := range list {
		holders := make([]string, len(s.Holders))
		for i, h := range s.Holders {
			holders[i] = fmt.Sprintf("%d/%d", h.PID, h.FD)
		}
		rows = append(rows, []string{
			s.Protocol, s.State, strconv.FormatInt(s.Recv, 10), strconv.FormatInt(s.Send, 10),
			cmp.Or(s.Local, "-"), cmp.Or(s.Remote, "-"), strings.Join(holders, " "),
		})
	}
	columns(b, rows)
}

func factsText(b *strings.Builder, t *checkpoint.Tree) {
	pidns := "the host's"
	if t.PIDNS {
		pidns = "its own"
	}
	rows := [][]string{
		{"pid namespace", pidns},
		{"mount namespace", string(t.MountNS)},
		{"needs process ids", ranges(t.IDs)},
	}
	for _, x := range t.Externals {
		fds := make([]string, len(x.FDs))
		for i, fd := range x.FDs {
			fds[i] = fmt.Sprintf("%d/%d", fd.PID, fd.FD)
		}
		rows = append(rows, []string{"open outside", fmt.Sprintf("%s %s (%s)", x.Kind, cmp.Or(x.Path, x.Key), strings.Join(fds, " "))})
	}
	for i, f := range t.Binaries {
		if i == shownFiles && len(t.Binaries) > shownFiles+1 {
			rows = append(rows, []string{"needs file", fmt.Sprintf("and %d more", len(t.Binaries)-i)})
			break
		}
		rows = append(rows, []string{"needs file", f.Path})
	}
	b.WriteString("\n")
	columns(b, rows)
}

// shownFiles is how many executables and libraries are listed for people; JSON has them all.
const shownFiles = 5

// ranges renders numbers in short: 3-5, 9.
func ranges(ids []int) string {
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	var parts []string
	for i := 0; i < len(ids); {
		j := i
		for j+1 < len(ids) && ids[j+1] == ids[j]+1 {
			j++
		}
		part := strconv.Itoa(ids[i])
		if j > i {
			part += "-" + strconv.Itoa(ids[j])
		}
		parts = append(parts, part)
		i = j + 1
	}
	return strings.Join(parts, ", ")
}
