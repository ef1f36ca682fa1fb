package blackout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

// throughputName is what a pattern of scenes finds it by.
const throughputName = "throughput"

// Throughput is how fast a connection is that is moved in full flight. Rates are Gbit/s, medians of all rounds.
type Throughput struct {
	Family    string  `json:"family"`    // 4 or 6
	Direction string  `json:"direction"` // from the client, or to it
	Rounds    int     `json:"rounds"`
	Before    float64 `json:"before"`
	First     float64 `json:"first"`             // in the first second after the move
	Later     float64 `json:"later"`             // in the time after that
	Was       string  `json:"was"`               // segment size, window scaling and congestion control
	Changed   string  `json:"changed,omitempty"` // what they are after the move, if that is something else
	Reason    string  `json:"reason,omitempty"`  // why there are no figures
}

const (
	flows       = 4 // kinds of them
	iperfPort   = 5201
	iperfBefore = 1500 * time.Millisecond // that it flows before the move
	iperfAll    = 5 * time.Second
)

// throughput moves an iperf3 that sends or receives.
func (b *bench) throughput(ctx context.Context, rounds int, limit time.Duration) []Throughput {
	var all []Throughput
	rounds = fit(rounds, flows*(iperfAll+time.Second), limit)
	for _, family := range []string{"4", "6"} {
		for _, direction := range []string{"from the client", "to the client"} {
			b.progress("throughput, IPv%s, %s", family, direction)
			t := Throughput{Family: family, Direction: direction, Rounds: rounds}
			if err := b.flow(ctx, &t); err != nil {
				t.Reason = err.Error()
			}
			all = append(all, t)
		}
	}
	return all
}

func (b *bench) flow(ctx context.Context, t *Throughput) (err error) {
	m, err := b.reference(ctx)
	if err != nil {
		return err
	}
	s := b.newService(Workload{Name: throughputName})
	if err := s.host.AddNetNS(ctx, s.NetNS); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.remove(context.WithoutCancel(ctx), s.host, s.NetNS)) }()
	err = s.host.Script(ctx, fmt.Sprintf("nsenter --net=/run/netns/%s setsid --fork iperf3 --server </dev/null >/dev/null 2>&1", s.Name))
	if err != nil {
		return err
	}
	if err := b.listening(ctx, s); err != nil {
		return err
	}
	var before, first, later []float64
	for range t.Rounds {
		f, err := b.flowOnce(ctx, m, s, t)
		if err != nil {
			return err
		}
		before, first, later = append(before, f.before), append(first, f.first), append(later, f.later)
	}
	t.Before, t.First, t.Later = sampleOf(before).median(), sampleOf(first).median(), sampleOf(later).median()
	return nil
}

func (b *bench) flowOnce(ctx context.Context, m mover, s *service, t *Throughput) (f rates, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	address := s.IPv4
	if t.Family == "6" {
		address = s.IPv6
	}
	args := []string{"--client", address, "--time", fmt.Sprint(iperfAll.Seconds()), "--interval", "0.1", "--json"}
	if t.Direction == "to the client" {
		args = append(args, "--reverse")
	}
	type outcome struct {
		lab.Result
		err error
	}
	ended := make(chan outcome, 1)
	begin := time.Now()
	go func() {
		r, err := b.Client.RunCmd(ctx, exec.CommandContext(ctx, "iperf3", args...))
		ended <- outcome{r, err}
	}()
	pause(ctx, iperfBefore)
	was, err := connectionKinds(ctx, s)
	if err != nil {
		return f, err
	}
	to := b.Other(s.host)
	if _, err := m.move(ctx, b.world, s, to); err != nil {
		return f, err
	}
	moved := time.Since(begin)
	s.host = to
	is, err := connectionKinds(ctx, s)
	if err != nil {
		return f, err
	}
	if t.Was = was; is != was {
		t.Changed = is
	}
	end := <-ended
	if end.err != nil {
		return f, end.err
	}
	if end.Code != 0 {
		return f, fmt.Errorf("%v", end.Result)
	}
	flow, err := parseFlow([]byte(end.Stdout))
	if err != nil {
		return f, err
	}
	return flow.rates(iperfBefore, moved), nil
}

// flow is how much was carried in each of many short intervals.
type flow []struct{ start, end, bits float64 } // seconds since its begin, bits a second

func parseFlow(text []byte) (flow, error) {
	var r struct {
		Error     string
		Intervals []struct {
			Sum struct {
				Start, End float64
				Bits       float64 `json:"bits_per_second"`
			}
		}
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("the report of iperf3: %w", err)
	}
	if r.Error != "" {
		return nil, fmt.Errorf("iperf3: %s", r.Error)
	}
	var f flow
	for _, i := range r.Intervals {
		f = append(f, struct{ start, end, bits float64 }{i.Sum.Start, i.Sum.End, i.Sum.Bits})
	}
	return f, nil
}

// rates are Gbit/s.
type rates struct{ before, first, later float64 }

// rates are those before a move began, in the second after it, and then. The first tenths of a second, in which a connection
// gets going, don't count.
func (f flow) rates(began, moved time.Duration) rates {
	const startUp = 0.5
	to := moved.Seconds()
	return rates{f.mean(startUp, began.Seconds()), f.mean(to, to+1), f.mean(to+1, iperfAll.Seconds())}
}

// mean is the mean rate of the intervals that begin between two times.
func (f flow) mean(from, to float64) float64 {
	bits, seconds := 0., 0.
	for _, i := range f {
		if i.start >= from && i.start < to {
			bits += i.bits * (i.end - i.start)
			seconds += i.end - i.start
		}
	}
	if seconds == 0 {
		return 0
	}
	return bits / seconds / 1e9
}

var kindPattern = regexp.MustCompile(`^\s*(?:ts )?(?:sack )?(?:ecn )?(\w+) (wscale:\S+) .*?\b(mss:\d+)`)

// connectionKinds tells congestion control, window scaling and segment size of the service's connections.
func connectionKinds(ctx context.Context, s *service) (string, error) {
	out, err := s.host.Output(ctx, "nsenter", "--net=/run/netns/"+s.Name, "ss", "-tinH", "state", "established", "sport", "=", fmt.Sprintf(":%d", iperfPort))
	return parseKinds(out), err
}

func parseKinds(text string) string {
	var kinds []string
	for line := range strings.Lines(text) {
		if m := kindPattern.FindStringSubmatch(line); m != nil {
			kinds = append(kinds, strings.Join(m[1:], " "))
		}
	}
	slices.Sort(kinds)
	return strings.Join(slices.Compact(kinds), ", ")
}
