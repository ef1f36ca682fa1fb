// Bench measures how long the clients of a service wait when it moves to another host, and how fast namespaces are
// captured and built, side by side with other tools on the same machine in the same run. It judges nothing but the figures it
// prints: absolute times are those of this machine, ratios and medians are what to look at.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/nsmigrate/nsmigrate/e2e/bench/blackout"
	"github.com/nsmigrate/nsmigrate/e2e/bench/openloop"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	rounds, routes int
	only           *regexp.Regexp
}

func run(ctx context.Context) error {
	quick := flag.Bool("quick", false, "fewer rounds and scenes, and a tenth of the million routes")
	only := flag.String("run", ".", "pattern of scenes to run")
	file := flag.String("json", "", "write the results to this file too")
	profile := flag.String("cpuprofile", "", "write a CPU profile to this file")
	with := flag.String("with", ".", "pattern of what services are moved with, such as \"nsmigrate|criu\"")
	rounds := flag.Int("rounds", 0, "move small services this many times, and others at most, instead of as many as their scenes say")
	tail := flag.Int("tail", 0, "move services this many times in the scene of that name, instead of a thousand times")
	budget := flag.Duration("budget", 0, "how long all may take: where that does not suffice there are fewer rounds (default 18m30s, or 2m20s with -quick)")
	client := flag.String(blackout.ClientFlag, "", "be a client of the blackout's, with options as JSON; the bench calls itself so")
	from := flag.String("from", "", "measure nothing: tell and draw what an earlier run wrote with -json, or several, separated by commas")
	pictures := flag.String("svg", "", "write pictures to this directory")
	readme := flag.Bool("readme", false, "write the pictures to "+pictureDir+" and the table into README.md, and print it as Markdown too")
	million := flag.Int(millionFlag, 0, "move this many routes from the namespace at descriptor 3; the bench calls itself so")
	flag.Parse()
	// What whoever started this left open is not for the services that are moved.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	if os.Geteuid() != 0 {
		return errors.New("building namespaces needs root: run it with sudo")
	}
	if *client != "" {
		var o openloop.Options
		if err := json.Unmarshal([]byte(*client), &o); err != nil {
			return err
		}
		return openloop.Run(o, os.Stdin, os.Stdout)
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	if *million > 0 {
		return moveMany(ctx, *million, os.Stdout)
	}
	pattern, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	movers, err := regexp.Compile(*with)
	if err != nil {
		return err
	}
	o := options{rounds: 5, routes: 1_000_000, only: pattern}
	if *quick {
		o.rounds, o.routes = 2, 100_000
	}
	var report Report
	var failures []error
	if *from != "" {
		if report, err = readReports(strings.Split(*from, ",")); err != nil {
			return err
		}
	} else {
		wish := blackout.Options{Only: pattern, Movers: movers, Quick: *quick, Rounds: *rounds, Tail: *tail, Progress: progress(os.Stderr), Done: done}
		wish.Budget = cmp.Or(*budget, usualBudget(*quick)) - takes(o)
		failures = report.measure(ctx, wish, o)
	}
	report.Blackout.Print(os.Stdout)
	report.print(os.Stdout)
	if *readme {
		*pictures = pictureDir
		failures = append(failures, report.intoReadme("README.md", os.Stdout))
	}
	if *pictures != "" {
		failures = append(failures, writePictures(*pictures, report.Blackout.Pictures()))
	}
	if *file != "" {
		text, err := json.MarshalIndent(report, "", "  ")
		failures = append(failures, err, os.WriteFile(*file, append(text, '\n'), 0o644))
	}
	return errors.Join(failures...)
}

// usualBudget leaves some of 20 minutes, or of three, to build the program, to fetch the others, and to chance.
func usualBudget(quick bool) time.Duration {
	if quick {
		return 140 * time.Second
	}
	return 18*time.Minute + 30*time.Second
}

// progress returns what shows in one line how far it is, on a terminal only.
func progress(f *os.File) func(format string, args ...any) {
	if !term.IsTerminal(int(f.Fd())) {
		return func(string, ...any) {}
	}
	return func(format string, args ...any) { fmt.Fprintf(f, "\r\033[K"+format, args...) }
}

// done says how long a scene took, instead of its progress.
func done(scene string, took time.Duration) {
	if term.IsTerminal(int(os.Stderr.Fd())) {
		fmt.Fprint(os.Stderr, "\r\033[K")
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", scene, took.Round(100*time.Millisecond))
}

// takes says about how long the scenes of namespaces take on a machine of two cores that does nothing else.
func takes(o options) time.Duration {
	const setUp, each = 2 * time.Second, 1900 * time.Millisecond
	var total time.Duration
	for _, p := range (&bench{options: o}).parts() {
		if o.only.MatchString(p.name) {
			total += setUp + time.Duration(o.rounds)*each
		}
	}
	return total
}

// measure measures everything that is asked for. A failure of one part does not hide the figures of the others.
func (r *Report) measure(ctx context.Context, wish blackout.Options, o options) (failures []error) {
	begin := load()
	r.Machine, r.Command, r.Rounds = machine(), again(os.Args[1:]), o.rounds
	fmt.Printf("%s, load %s\nThis takes about %d minutes.\n", r.Machine, begin, int(math.Ceil((blackout.Takes(wish) + takes(o)).Minutes())))
	var err error
	r.Blackout, err = blackout.Measure(ctx, wish)
	failures = append(failures, err)
	r.Machine += fmt.Sprintf(", load %s at the begin and %s in the end of it", begin, load())
	r.Results, err = measure(ctx, o)
	return append(failures, err)
}

// again is how people have the benchmark called with flags.
func again(flags []string) string {
	if len(flags) == 0 {
		return "`make bench`"
	}
	quoted := make([]string, len(flags))
	for i, f := range flags {
		quoted[i] = f
		if strings.ContainsAny(f, "^|$ *") {
			quoted[i] = strconv.Quote(f)
		}
	}
	return "`make bench BENCH='" + strings.Join(quoted, " ") + "'`"
}

// machine says what the figures were measured on.
func machine() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown machine"
	}
	model := "unknown processor"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := regexp.MustCompile(`model name\s*: (.*)`).FindSubmatch(info); m != nil {
			model = string(m[1])
		}
	}
	return fmt.Sprintf("%d cores (%s), Linux %s, %s",
		runtime.NumCPU(), model, unix.ByteSliceToString(u.Release[:]), runtime.Version())
}

// load is how many processes wanted to run in the last minute.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

// readReports joins what several runs found out.
func readReports(names []string) (r Report, err error) {
	var commands []string
	for i, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return r, err
		}
		var one Report
		if err := json.Unmarshal(text, &one); err != nil {
			return r, fmt.Errorf("%s: %w", name, err)
		}
		if i == 0 {
			r.Machine, r.Rounds = one.Machine, one.Rounds
		}
		commands = append(commands, one.Command)
		r.Results = append(r.Results, one.Results...)
		r.Blackout.Join(one.Blackout)
	}
	r.Command = strings.Join(commands, ",\n")
	return r, nil
}

// Report is what a run found out.
type Report struct {
	Machine string   `json:"machine"`
	Command string   `json:"command"` // how to do it again
	Rounds  int      `json:"rounds"`
	Results []Result `json:"results"`

	Blackout blackout.Results `json:"blackout"`
}

// Result is one line of the table. Its unit is milliseconds or MiB.
type Result struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	Ours   Sample  `json:"ours"`
	Rival  string  `json:"rival,omitempty"` // the tool that does the same; there may be none
	Theirs *Sample `json:"theirs,omitempty"`
	Ratio  float64 `json:"ratio,omitempty"` // how many times faster than the tool
	// Kernel is what the kernel alone takes for the objects that the tool handles, of which ours is the more the less
	// there is to win.
	Kernel *Sample `json:"kernel,omitempty"`
	Goal   string  `json:"goal,omitempty"`
	Met    bool    `json:"met,omitempty"`
}

// Sample sums up the rounds.
type Sample struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func sampleOf(values []float64) Sample {
	slices.Sort(values)
	return Sample{Median: values[len(values)/2], Min: values[0], Max: values[len(values)-1]}
}

func milliseconds(times []time.Duration) Sample {
	values := make([]float64, len(times))
	for i, t := range times {
		values[i] = float64(t) / float64(time.Millisecond)
	}
	return sampleOf(values)
}

// faster compares a sample of ours with one of a tool's.
func faster(name string, ours Sample, rival string, theirs Sample, goal float64) Result {
	r := Result{Name: name, Unit: "ms", Ours: ours, Rival: rival, Theirs: &theirs, Ratio: theirs.Median / ours.Median}
	r.Goal, r.Met = fmt.Sprintf(">= %gx", goal), r.Ratio >= goal
	return r
}

// within compares a sample with a bound.
func within(name, unit string, ours Sample, bound float64) Result {
	return Result{Name: name, Unit: unit, Ours: ours, Goal: fmt.Sprintf("<= %g %s", bound, unit), Met: ours.Median <= bound}
}

func (s Sample) String() string {
	if s.Min == s.Max {
		return number(s.Median)
	}
	return fmt.Sprintf("%s (%s..%s)", number(s.Median), number(s.Min), number(s.Max))
}

func number(f float64) string {
	switch {
	case f < 10:
		return fmt.Sprintf("%.2f", f)
	case f < 100:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.0f", f)
}

func (r *Report) print(out io.Writer) {
	if len(r.Results) == 0 {
		return
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tunit\tnsmigrate\tkernel alone\ttool\tits median\tfaster\tgoal\t")
	for _, x := range r.Results {
		kernel, theirs, ratio, verdict := "", "", "", ""
		if x.Kernel != nil {
			kernel = number(x.Kernel.Median)
		}
		if x.Theirs != nil {
			theirs, ratio = x.Theirs.String(), number(x.Ratio)+"x"
		}
		if x.Goal != "" && !x.Met {
			verdict = "missed"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", x.Name, x.Unit, x.Ours, kernel, x.Rival, theirs, ratio, x.Goal, verdict)
	}
	w.Flush()
	fmt.Fprintf(out, "Medians of %d rounds (min..max). Ours is a whole capture or build, with links, sysctls and filters; a tool does its part alone,\n"+
		"in a namespace whose links are there already. A tool's time includes its start, about 2 ms. The kernel alone is given requests for\n"+
		"the tool's objects that are ready, and nobody looks at its answers: nothing can be faster.\n", r.Rounds)
}
