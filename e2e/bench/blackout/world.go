package blackout

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nsmigrate/nsmigrate/e2e/bench/openloop"
	"github.com/nsmigrate/nsmigrate/e2e/lab"
)

//go:embed service/echo.c
var echoSource []byte

// ClientFlag, with the JSON of [openloop.Options], makes the program a client of the benchmark: it calls itself so.
const ClientFlag = "client"

// world is a lab with the programs of the benchmark.
type world struct {
	*lab.Lab
	nsmigrate string // path, on every host
	echo      string
	self      string
	criu      string
	first     []string     // has a program run before all others
	services  atomic.Int32 // how many there were, for names and addresses
	ends      []func() error
}

func newWorld(ctx context.Context) (w *world, err error) {
	l, err := lab.New(ctx, lab.Options{})
	if err != nil {
		return nil, err
	}
	w = &world{Lab: l}
	if err := w.programs(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	// The client is to see the service's delays and not its own: it stands for another host's, whose processors are not busy.
	if w.first = []string{"chrt", "-f", "10"}; l.Client.Script(ctx, "chrt -f 10 true") != nil {
		w.first = []string{"nice", "-n", "-15"}
	}
	// Tens of thousands of connections in a few seconds.
	err = l.Client.Script(ctx, "echo 4096 >/proc/sys/net/core/somaxconn; echo 0 >/proc/sys/net/ipv4/tcp_syncookies")
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// atEnd has something removed from the machine after the lab is gone.
func (w *world) atEnd(f func() error) { w.ends = append(w.ends, f) }

func (w *world) close() error {
	err := w.Close()
	for _, f := range w.ends {
		err = errors.Join(err, f())
	}
	return err
}

// privateCRIU is where checkpoint/criu/install.sh puts one when the distribution's is too old.
const privateCRIU = "/usr/local/lib/nsmigrate/criu/bin/criu"

// programs builds and finds what runs on the hosts.
func (w *world) programs(ctx context.Context) error {
	bin := filepath.Join(w.Dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	w.nsmigrate, w.echo, w.self = filepath.Join(bin, "nsmigrate"), filepath.Join(bin, "echo"), filepath.Join(bin, "bench")
	installed, err := exec.LookPath("nsmigrate")
	if err != nil {
		return fmt.Errorf("%w (make bench builds it)", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	source := filepath.Join(bin, "echo.c")
	err = errors.Join(copyFile(installed, w.nsmigrate), copyFile(self, w.self), os.WriteFile(source, echoSource, 0o644))
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "gcc", "-O2", "-static", "-o", w.echo, source).CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the service: %w\n%s", err, out)
	}
	if w.criu = privateCRIU; !isFile(w.criu) {
		if w.criu, err = exec.LookPath("criu"); err != nil {
			return fmt.Errorf("%w (make criu)", err)
		}
	}
	return nil
}

func isFile(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular()
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// service is a running echo service in a namespace of its own.
type service struct {
	lab.NetNS
	number int // of all services
	load   Workload
	host   *lab.Host
	client *openloop.Client
	done   *lab.Process // the client
	moves  int
}

const port = 7000

// newService names one. Every one has another name and address, so that those of several movers can live side by side.
func (w *world) newService(load Workload) *service {
	const first, count = 100, 120
	number := int(w.services.Add(1) - 1)
	n := number % count
	return &service{
		number: number, load: load, host: w.A,
		NetNS: lab.NetNS{Name: fmt.Sprintf("s%d", n), IPv4: fmt.Sprintf("10.77.0.%d", first+n), IPv6: fmt.Sprintf("fd77::%d", first+n)},
	}
}

// firstPID begins the ids of the service's processes, with room for all of them beside other services. Ids of the hosts' own
// processes are kept below, so that those of the service are free on the other host.
func (s *service) firstPID() int {
	const begin, each, services = 27_000, 550, 10
	return begin + each*(s.number%services)
}

// ownPIDs has both hosts count their own processes anew, far from each other's and from services'.
func (w *world) ownPIDs(ctx context.Context) error {
	const begin, each = 8000, 7000
	for i, h := range w.Hosts() {
		if err := h.Script(ctx, fmt.Sprintf("echo %d >/proc/sys/kernel/ns_last_pid", begin+each*i)); err != nil {
			return err
		}
	}
	return nil
}

// echoArgs is the command line of the service.
func (w *world) echoArgs(program string, l Workload) []string {
	return []string{
		program, fmt.Sprint(port), fmt.Sprint(max(1, l.Workers)), fmt.Sprint(l.MemoryMB), string(l.fill()), fmt.Sprint(l.Idle),
	}
}

// plainNetNS makes a namespace on a host that says nothing by itself: no IPv6, whose neighbour discovery would tell the
// switch where its address is. A twin on the other host can then be plugged in while the first still lives. That is how a
// careful operator prepares a move with tools that leave the network to him. The hardware address is "" for any.
func plainNetNS(ctx context.Context, h *lab.Host, n lab.NetNS, address string) error {
	if address != "" {
		address = "address " + address
	}
	return h.Script(ctx, fmt.Sprintf(`
		ip netns add %[1]s
		ip link add %[2]s type veth peer name eth0 %[4]s netns %[1]s
		ip -n %[1]s link set lo up
		nsenter --net=/run/netns/%[1]s sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1
		ip -n %[1]s link set eth0 up
		ip -n %[1]s address add %[3]s/24 dev eth0
		ip -n %[1]s route add default via %[5]s
		ip link set %[2]s master br0 up`,
		n.Name, n.Uplink(), n.IPv4, address, lab.GatewayIPv4))
}

// hardwareAddress is that of the service's end of its uplink.
func hardwareAddress(ctx context.Context, h *lab.Host, n lab.NetNS) (string, error) {
	out, err := h.Output(ctx, "nsenter", "--net=/run/netns/"+n.Name, "ip", "-br", "link", "show", "eth0")
	if err != nil {
		return "", err
	}
	fields := strings.Fields(out)
	if len(fields) < 3 {
		return "", fmt.Errorf("%s: no address in %q", h.Name, out)
	}
	return fields[2], nil
}

// remove ends a namespace with everything in it.
func (w *world) remove(ctx context.Context, h *lab.Host, n lab.NetNS) error {
	_, err := h.Run(ctx, "sh", "-c", fmt.Sprintf(
		"ip netns pids %[1]s | xargs -r kill -9; ip netns delete %[1]s; ip link delete %[2]s", n.Name, n.Uplink()))
	return err
}

// spawn runs the service in its namespace.
func (w *world) spawn(ctx context.Context, s *service) error {
	args := strings.Join(w.echoArgs(w.echo, s.load), " ")
	return s.host.Script(ctx, fmt.Sprintf(`
		echo %d >/proc/sys/kernel/ns_last_pid
		nsenter --net=/run/netns/%s setsid --fork %s </dev/null >/dev/null 2>&1`, s.firstPID(), s.Name, args))
}

// listening waits until all the service's processes can be connected to.
func (w *world) listening(ctx context.Context, s *service) error {
	want := max(1, s.load.Workers)
	return lab.Eventually(ctx, func() error {
		out, err := s.host.Output(ctx, "nsenter", "--net=/run/netns/"+s.Name, "ss", "-tlnH")
		if err == nil && strings.Count(out, "\n") < want {
			err = fmt.Errorf("%s: the service listens on %d ports of %d", s.host.Name, strings.Count(out, "\n"), want)
		}
		return err
	})
}

// rootPID is the service's first process, as its host sees it.
func rootPID(h *lab.Host, s *service) (int, error) {
	pids, err := os.ReadDir(h.Path("/proc"))
	if err != nil {
		return 0, err
	}
	ns, err := os.Stat(h.Path("/run/netns/" + s.Name))
	if err != nil {
		return 0, err
	}
	first := 0
	for _, p := range pids {
		var pid int
		if _, err := fmt.Sscan(p.Name(), &pid); err != nil {
			continue
		}
		of, err := os.Stat(h.Path("/proc/" + p.Name() + "/ns/net"))
		if err == nil && os.SameFile(ns, of) && (first == 0 || pid < first) {
			first = pid
		}
	}
	if first == 0 {
		return 0, fmt.Errorf("%s: nobody lives in %s", h.Name, s.Name)
	}
	return first, nil
}

// answerLimit is after how long without an answer a connection is dead.
const answerLimit = 20 * time.Second

// connect starts the service's client.
func (w *world) connect(ctx context.Context, s *service) error {
	o := openloop.Options{
		Address: s.IPv4, Port: port, Ports: max(1, s.load.Workers), Connections: max(1, s.load.Connections),
		Rate: cmp.Or(s.load.Rate, messageRate), Size: messageSize, Limit: answerLimit, Each: s.load.Connections <= fewClients,
	}
	text, err := jsonText(o)
	if err != nil {
		return err
	}
	args := append(slices.Clone(w.first), w.self, "-"+ClientFlag, text)
	cmd := exec.Command(args[0], args[1:]...) // until it is told to end
	cmd.Stderr = os.Stderr
	if s.client, err = openloop.Attach(cmd); err != nil {
		return err
	}
	if s.done, err = w.Client.Start(cmd); err != nil {
		return err
	}
	return s.client.Ready(ctx)
}

func (s *service) disconnect(ctx context.Context) error {
	if s.client == nil {
		return nil
	}
	return errors.Join(s.client.Close(), s.done.Wait(ctx))
}
