package netstate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nsmigrate/nsmigrate/netstate/ns"
	"github.com/nsmigrate/nsmigrate/netstate/rawnl"
)

// sysctlRoot shows the sysctls of the network namespace of the thread that looks.
const sysctlRoot = "/proc/sys/net"

// Sysctl is one kernel parameter of the namespace.
//
// A State holds every parameter that is not a device's. Of each device's it holds those that differ from
// the parameter of the same name for "default", from which a new device takes its values. The kernel has no
// neigh/default outside the initial namespace: a State's entries of that name are what a fresh namespace
// gives to its devices.
type Sysctl struct {
	Path  string `json:"path"` // below /proc/sys/net, e.g. "ipv4/conf/eth0/rp_filter"
	Value string `json:"value"`
	Fresh bool   `json:"fresh,omitempty"` // a fresh namespace on the same host has this value too
}

// perDevice are the directories with one subdirectory per device.
func perDevice() []string {
	return []string{"ipv4/conf", "ipv4/neigh", "ipv6/conf", "ipv6/neigh"}
}

// sysctlDevice returns the device that a parameter belongs to, or "" if it is the namespace's own.
func sysctlDevice(p string) string {
	for _, dir := range perDevice() {
		if rest, ok := strings.CutPrefix(p, dir+"/"); ok {
			dev, _, _ := strings.Cut(rest, "/")
			if dev == "all" || dev == "default" {
				return ""
			}
			return dev
		}
	}
	return ""
}

// sysctlCarried tells settings from what has the form of one.
func sysctlCarried(p string) bool {
	switch path.Base(p) {
	case "flush", // an action
		"nf_conntrack_count", "nf_conntrack_buckets", // a counter; the size of a table that all namespaces share
		"mc_forwarding",                          // says whether a multicast routing daemon is running
		"ip_forward",                             // ipv4/conf/all/forwarding under another name
		"unres_qlen",                             // unres_qlen_bytes in packets
		"base_reachable_time", "gc_min_interval", // ..._ms in a coarser unit
		"retrans_time":
		return false
	case "addr_gen_mode":
		return sysctlDevice(p) == "" // a device's is part of its link
	}
	return true
}

// sysctlFile is one parameter as read.
type sysctlFile struct{ path, value string }

// sysctlReader reads parameters in the namespace of its thread.
type sysctlReader struct {
	buf   [sysctlSmall]byte
	told  told
	known map[string]map[string]deviceParam // what netlink tells by directory of [perDevice] and name
	names map[string][]deviceParam          // what there is in such a directory of a device; it is the same for all devices
	same  map[string]decoded                // what was told last in such a directory
	last  struct {                          // where read looked last
		prefix, dir string
		told        []byte
	}
}

// decoded is what netlink told of a device, with the values of its parameters; "" is one of which nothing was told.
type decoded struct {
	told   []byte
	values []string
}

// The kernel clears a buffer of the size that a read asks for, which costs more than all the rest of it: nearly all
// values fit into the small one. The largest there can be is a list of ports.
const (
	sysctlSmall = 1 << 10
	sysctlLarge = 1 << 17
)

// newSysctlReader returns a reader that takes from t what it can. It changes t.
func newSysctlReader(t told) *sysctlReader {
	return &sysctlReader{told: t, known: map[string]map[string]deviceParam{}, names: map[string][]deviceParam{}, same: map[string]decoded{}}
}

// knownIn returns what netlink tells in a directory of [perDevice], by name.
func (r *sysctlReader) knownIn(dir string) map[string]deviceParam {
	params, ok := r.known[dir]
	if !ok {
		params = toldParams(dir)
		r.known[dir] = params
	}
	return params
}

// read returns a parameter's value. A parameter that can't be read at the moment (stable_secret before it
// is set) or has no reading (flush) is not there.
func (r *sysctlReader) read(p string) (string, bool) {
	prefix, name := path.Split(p)
	if r.last.prefix != prefix {
		dir, dev := path.Split(strings.TrimSuffix(prefix, "/"))
		r.last.prefix, r.last.dir = prefix, strings.TrimSuffix(dir, "/")
		r.last.told = r.told[deviceDir{dev, r.last.dir}]
	}
	if r.last.told != nil {
		if param, ok := r.knownIn(r.last.dir)[name]; ok {
			if v, ok := param.in(r.last.dir, r.last.told); ok {
				return v, true
			}
		}
	}
	return readSysctl(unix.AT_FDCWD, sysctlRoot+"/"+p, r.buf[:])
}

// forget makes the reader read the parameters of a device from its files.
func (r *sysctlReader) forget(dev string) {
	for _, dir := range perDevice() {
		delete(r.told, deviceDir{dev, dir})
	}
	r.last.prefix = ""
}

// readSysctl reads the file at a path below an open directory. A value that may not fit into buf is read into a larger
// one.
func readSysctl(at int, p string, buf []byte) (string, bool) {
	fd, err := unix.Openat(at, p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", false
	}
	defer unix.Close(fd)
	n, err := unix.Pread(fd, buf, 0)
	if n == len(buf) {
		buf = make([]byte, sysctlLarge)
		n, err = unix.Pread(fd, buf, 0)
	}
	if err != nil || n < 0 {
		return "", false
	}
	return strings.TrimSuffix(string(buf[:n]), "\n"), true
}

// namespace reads what is not a device's, with "all" and "default".
func (r *sysctlReader) namespace() ([]sysctlFile, error) {
	files := make([]sysctlFile, 0, 512)
	var walk func(p string) error
	walk = func(p string) error {
		dir, err := os.Open(sysctlRoot + "/" + p)
		if err != nil {
			return fmt.Errorf("list sysctls: %w", err)
		}
		defer dir.Close()
		entries, err := dir.ReadDir(-1) // the kernel lists them by name
		if err != nil {
			return fmt.Errorf("list sysctls: %w", err)
		}
		if device, ok := strings.CutSuffix(p, "/default/"); ok && slices.Contains(perDevice(), device) {
			r.learn(device, entries)
		}
		at := int(dir.Fd())
		for _, e := range entries {
			name := e.Name()
			p := p + name
			switch {
			case e.IsDir() && sysctlDevice(p) != "":
			case e.IsDir():
				if err := walk(p + "/"); err != nil {
					return err
				}
			case sysctlCarried(p):
				if v, ok := readSysctl(at, name, r.buf[:]); ok {
					files = append(files, sysctlFile{p, v})
				}
			}
		}
		return nil
	}
	err := walk("")
	return files, err
}

// device visits the parameters that a device has in a directory of [perDevice].
func (r *sysctlReader) device(dev, dir string, visit func(name, value string)) {
	told := r.told[deviceDir{dev, dir}]
	at := -1 // opened if there is anything to read from it
	defer func() {
		if at >= 0 {
			unix.Close(at)
		}
	}()
	params := r.paramsOf(dev, dir)
	values := r.decode(dir, params, told)
	for i, p := range params {
		v := values[i]
		ok := v != ""
		if !ok && at < 0 {
			var err error
			if at, err = unix.Open(sysctlRoot+"/"+dir+"/"+dev, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
				return // the device takes no part in this protocol
			}
		}
		if !ok {
			v, ok = readSysctl(at, p.name, r.buf[:])
		}
		if ok {
			visit(p.name, v)
		}
	}
}

// paramsOf returns the parameters that devices have in a directory of [perDevice]; dev is one that may take part in
// the directory's protocol.
func (r *sysctlReader) paramsOf(dev, dir string) []deviceParam {
	if params, ok := r.names[dir]; ok {
		return params
	}
	entries, err := os.ReadDir(path.Join(sysctlRoot, dir, dev))
	if err != nil {
		return nil
	}
	return r.learn(dir, entries)
}

// learn notes the parameters that devices have in a directory of [perDevice]. Both protocols have the same ones for
// neighbours.
func (r *sysctlReader) learn(dir string, entries []os.DirEntry) []deviceParam {
	params := make([]deviceParam, 0, len(entries))
	for _, e := range entries {
		if p, ok := r.knownIn(dir)[e.Name()]; !sysctlCarried(dir + "/x/" + e.Name()) {
			continue
		} else if ok {
			params = append(params, p)
		} else {
			params = append(params, deviceParam{name: e.Name(), at: -1})
		}
	}
	for _, other := range perDevice() {
		if other == dir || path.Base(dir) == "neigh" && path.Base(other) == "neigh" {
			r.names[other] = params
		}
	}
	return params
}

// decode returns the values of parameters of which netlink told. It tells the same of most devices, so that the last
// answer often serves again.
func (r *sysctlReader) decode(dir string, params []deviceParam, told []byte) []string {
	last := r.same[dir]
	if len(last.values) == len(params) && bytes.Equal(last.told, told) {
		return last.values
	}
	values := make([]string, len(params))
	for i := range params {
		values[i], _ = params[i].in(dir, told)
	}
	r.same[dir] = decoded{told, values}
	return values
}

// isLinkMTU tells a device's IPv6 MTU, which starts as the link's and not as default's.
func isLinkMTU(p string) bool {
	return strings.HasPrefix(p, "ipv6/conf/") && path.Base(p) == "mtu" && sysctlDevice(p) != ""
}

// captureSysctls reads the parameters of a namespace and of its devices.
//
// The IPv6 MTU of a device that equals its link's is left out: it follows from the link.
func captureSysctls(ctx context.Context, n *ns.NS, links []link) ([]Sysctl, error) {
	baseline := make(chan baseline, 1) // read meanwhile
	go func() { baseline <- freshLately() }()
	told, err := tell(ctx, n, links)
	if err != nil {
		return nil, fmt.Errorf("capture sysctls: %w", err)
	}
	var all []Sysctl
	err = n.Do(func() error {
		r := newSysctlReader(told)
		files, err := r.namespace()
		b := <-baseline
		if err = errors.Join(err, b.err); err != nil {
			return err
		}
		all = differing(r, links, files, b.values)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("capture sysctls: %w", err)
	}
	return all, nil
}

// differing returns the parameters that a State holds: those of the namespace, which files lists, and those of devices
// that differ from what new devices get.
func differing(r *sysctlReader, links []link, files []sysctlFile, fresh map[string]string) []Sysctl {
	own := make([]Sysctl, 0, len(files))
	defaults := map[string]string{}
	for _, f := range files {
		v, ok := fresh[f.path]
		if strings.HasPrefix(f.path, "mpls/conf/") && f.value == "0" {
			continue // as of every new device
		}
		own = append(own, Sysctl{Path: f.path, Value: f.value, Fresh: ok && v == f.value})
		if strings.Contains(f.path, "/default/") {
			defaults[f.path] = f.value
		}
	}
	var devices []Sysctl
	for p, v := range fresh {
		if _, ok := defaults[p]; !ok && strings.Contains(p, "/neigh/default/") {
			devices = append(devices, Sysctl{Path: p, Value: v, Fresh: true})
			defaults[p] = v
		}
	}
	for _, dir := range perDevice() {
		initial := inDirectory(defaults, dir+"/default/")
		for i := range links {
			dev := links[i].name
			r.device(dev, dir, func(name, value string) {
				if v, ok := initial[name]; ok && v == value {
					return
				}
				p := dir + "/" + dev + "/" + name
				if isLinkMTU(p) && value == strconv.FormatUint(uint64(rawnl.Uint32(links[i].attr(unix.IFLA_MTU))), 10) {
					return
				}
				devices = append(devices, Sysctl{Path: p, Value: value, Fresh: dev == "lo" && fresh[p] == value})
			})
		}
	}
	return mergeSysctls(own, devices)
}

// mergeSysctls joins two lists by path. The first is long and comes nearly sorted, so that sorting both apart is cheap.
func mergeSysctls(a, b []Sysctl) []Sysctl {
	byPath := func(a, b Sysctl) int { return strings.Compare(a.Path, b.Path) }
	slices.SortFunc(a, byPath)
	slices.SortFunc(b, byPath)
	all := make([]Sysctl, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if byPath(a[0], b[0]) <= 0 {
			all, a = append(all, a[0]), a[1:]
		} else {
			all, b = append(all, b[0]), b[1:]
		}
	}
	return slices.Concat(all, a, b)
}

// inDirectory returns the values of the files whose paths are a prefix and a name, by name.
func inDirectory(values map[string]string, prefix string) map[string]string {
	some := map[string]string{}
	for p, v := range values {
		if name, ok := strings.CutPrefix(p, prefix); ok {
			some[name] = v
		}
	}
	return some
}

// freshSysctls returns the parameters of a namespace that was just made: several are inherited from the
// initial namespace, so they differ from host to host and from day to day.
func freshSysctls() baseline {
	n, err := ns.Create()
	if err != nil {
		return baseline{err: fmt.Errorf("compare with a fresh namespace: %w", err)}
	}
	defer n.Close()
	values := map[string]string{}
	err = n.Do(func() error {
		r := newSysctlReader(nil)
		files, err := r.namespace()
		if err != nil {
			return err
		}
		for _, f := range files {
			values[f.path] = f.value
		}
		for _, dir := range perDevice() {
			r.device("lo", dir, func(name, value string) {
				values[dir+"/lo/"+name] = value
				if strings.HasSuffix(dir, "/neigh") {
					values[dir+"/default/"+name] = value
				}
			})
		}
		return nil
	})
	return baseline{values, err}
}

// baseline is what freshSysctls found.
type baseline struct {
	values map[string]string
	err    error
}

// lately holds the last baseline: a namespace takes milliseconds to make and more to take down, and a host seldom
// changes what it gives to new ones.
var lately struct {
	sync.Mutex
	baseline
	at time.Time
}

const baselineAge = 10 * time.Second

// freshLately returns the parameters of a namespace that was made a moment ago. They are only read.
func freshLately() baseline {
	lately.Lock()
	defer lately.Unlock()
	if lately.values == nil || time.Since(lately.at) > baselineAge {
		b := freshSysctls()
		if b.err != nil {
			return b
		}
		lately.baseline, lately.at = b, time.Now()
	}
	return lately.baseline
}

// sysctlRank orders writes: a parameter comes after those whose writing changes it.
func sysctlRank(p string) int {
	switch path.Base(p) {
	case "forwarding", "disable_ipv6":
		return 0 // forwarding resets accept_redirects and others; disable_ipv6 resets mtu
	case "accept_redirects", "mtu":
		return 2
	}
	return 1
}

// sysctlGroup orders the writes of a namespace: "all" changes the devices and "default" along with it.
func sysctlGroup(p string) int {
	switch {
	case strings.Contains(p, "/conf/all/"):
		return 0
	case strings.Contains(p, "/conf/default/"):
		return 1
	case sysctlDevice(p) == "":
		return 2
	}
	return 3
}

// sortSysctls puts writes in order, and leaves the order of those for which it does not matter.
func sortSysctls(list []Sysctl) []Sysctl {
	const groups, ranks = 4, 3
	var sizes [groups * ranks]int
	places := make([]uint8, len(list)) // of a thousand links there are a hundred thousand
	for i, c := range list {
		places[i] = uint8(sysctlGroup(c.Path)*ranks + sysctlRank(c.Path))
		sizes[places[i]]++
	}
	var next [groups * ranks]int
	for i := 1; i < len(next); i++ {
		next[i] = next[i-1] + sizes[i-1]
	}
	sorted := make([]Sysctl, len(list))
	for i, c := range list {
		sorted[next[places[i]]] = c
		next[places[i]]++
	}
	return sorted
}

// namespaceSysctls returns the writes that are not a device's, in order.
func (s *State) namespaceSysctls() []Sysctl {
	var list []Sysctl
	for _, c := range s.Sysctls {
		if sysctlDevice(c.Path) == "" && !strings.Contains(c.Path, "/neigh/default/") {
			list = append(list, c)
		}
	}
	return sortSysctls(list)
}

// deviceSysctls returns the writes for devices, in order: for each device its own values, and for the rest
// what new devices of the source started with. If names are given, only parameters of these names are returned.
func (s *State) deviceSysctls(devices []string, names ...string) []Sysctl {
	present := map[string]bool{}
	for _, dev := range devices {
		present[dev] = true
	}
	defaults := map[string][]Sysctl{}
	own := map[string]bool{}
	var list []Sysctl
	for _, c := range s.Sysctls {
		if len(names) > 0 && !slices.Contains(names, path.Base(c.Path)) {
			continue
		}
		for _, dir := range perDevice() {
			if name, ok := strings.CutPrefix(c.Path, dir+"/default/"); ok {
				if as := dir + "/x/" + name; sysctlCarried(as) && !isLinkMTU(as) {
					defaults[dir] = append(defaults[dir], c)
				}
			}
		}
		if present[sysctlDevice(c.Path)] {
			own[c.Path] = true
			list = append(list, c)
		}
	}
	more := 0
	for _, of := range defaults {
		more += len(of)
	}
	list = slices.Grow(list, more*len(devices))
	for _, dev := range devices {
		for _, dir := range perDevice() {
			for _, c := range defaults[dir] {
				if p := dir + "/" + dev + "/" + path.Base(c.Path); !own[p] {
					list = append(list, Sysctl{Path: p, Value: c.Value, Fresh: true})
				}
			}
		}
	}
	return sortSysctls(list)
}

// writeSysctls sets those parameters that have another value, in the namespace of the calling thread. It
// returns those that can't be set yet, because the parameter does not exist or another one bounds it, and those
// that are not set here and needn't be: the namespace can't set them, so that the value was not its own choice,
// or a fresh namespace of the source host had the value.
func writeSysctls(list []Sysctl, t told) (later, skipped []Sysctl) {
	r := newSysctlReader(t)
	for _, c := range list {
		have, ok := r.read(c.Path)
		if ok && have == c.Value {
			continue
		}
		r.forget(sysctlDevice(c.Path))
		if err := writeSysctl(c.Path, c.Value); err != nil {
			switch {
			case !ok && c.Fresh: // of a protocol or a module that is not here
			case c.Fresh, errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
				skipped = append(skipped, c)
			default:
				later = append(later, c)
			}
		}
	}
	return later, skipped
}

func writeSysctl(p, value string) error {
	fd, err := unix.Open(sysctlRoot+"/"+p, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set sysctl %s: %w", sysctlName(p), err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("set sysctl %s=%s: %w", sysctlName(p), value, err)
	}
	return nil
}

// sysctlName writes a path as sysctl(8) does, with dots of device names as slashes.
func sysctlName(p string) string {
	return "net." + strings.NewReplacer("/", ".", ".", "/").Replace(p)
}

// sysctlPathValid accepts clean relative paths of at least two elements.
func sysctlPathValid(p string) bool {
	return strings.Contains(p, "/") && path.Clean(p) == p && !path.IsAbs(p) && !strings.HasPrefix(p, "../") &&
		!strings.ContainsRune(p, 0)
}
