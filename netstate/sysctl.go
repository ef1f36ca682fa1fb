package netstate

import (
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
	names map[string][]string // file names of a per-device directory, which are the same for all devices
	twins twins
	seen  map[twinParam]sysctlValue
}

// The kernel clears a buffer of the size that a read asks for, which costs more than all the rest of it: nearly all
// values fit into the small one. The largest there can be is a list of ports.
const (
	sysctlSmall = 1 << 10
	sysctlLarge = 1 << 17
)

// twins says which devices have the same parameters: those with the same string. A device that isn't there is
// like no other.
type twins map[string]string

// twinParam is a parameter that all devices with the same parameters have.
type twinParam struct{ twin, dir, name string }

type sysctlValue struct {
	value string
	ok    bool
}

func newSysctlReader(t twins) *sysctlReader {
	return &sysctlReader{names: map[string][]string{}, twins: t, seen: map[twinParam]sysctlValue{}}
}

// findTwins compares the parameters of devices as netlink tells them: one answer has hundreds of values, each of
// which would be a file to open. What the values mean is of no interest here.
func findTwins(ctx context.Context, nl *rawnl.Conn, links []link) (twins, error) {
	msgs, err := nl.Dump(ctx, rawnl.Message{Type: unix.RTM_GETNEIGHTBL, Data: make([]byte, sizeofNdtMsg)})
	if err != nil {
		return nil, fmt.Errorf("dump neighbour tables: %w", err)
	}
	neigh := map[int32]string{}
	for _, m := range msgs {
		if len(m.Data) < sizeofNdtMsg {
			continue
		}
		params := rawnl.Get(m.Data[sizeofNdtMsg:], ndtaParms)
		lasting := rawnl.Rewrite(params, func(a rawnl.Attr) (rawnl.Attr, bool) {
			switch a.Kind() {
			case ndtpaIfindex, ndtpaRefcnt, ndtpaReachableTime: // the device; counters; a value drawn by lot
				return a, false
			}
			return a, true
		})
		neigh[int32(rawnl.Uint32(rawnl.Get(params, ndtpaIfindex)))] += string(m.Data[:1]) + string(lasting)
	}
	t := twins{}
	for i := range links {
		l := &links[i]
		v4, _ := rawnl.Find(l.afSpec(unix.AF_INET), iflaInetConf)
		v6, _ := rawnl.Find(l.afSpec(unix.AF_INET6), iflaInet6Conf)
		t[l.name] = fmt.Sprintf("%d %s%s%s", len(v4), v4, v6, neigh[l.index])
	}
	return t, nil
}

// read returns a parameter's value. A parameter that can't be read at the moment (stable_secret before it
// is set) or has no reading (flush) is not there.
func (r *sysctlReader) read(p string) (string, bool) {
	dir, name := path.Split(p)
	dir, dev := path.Split(strings.TrimSuffix(dir, "/"))
	if sysctlDevice(p) != dev {
		return readSysctl(unix.AT_FDCWD, sysctlRoot+"/"+p, r.buf[:])
	}
	return r.readDevice(dev, strings.TrimSuffix(dir, "/"), name, unix.AT_FDCWD, sysctlRoot+"/"+p)
}

// readDevice returns the value of a device's parameter, which is the file at a path below an open directory.
func (r *sysctlReader) readDevice(dev, dir, name string, at int, p string) (string, bool) {
	twin, ok := r.twins[dev]
	if !ok || dir == "ipv6/conf" && !told(name) {
		return readSysctl(at, p, r.buf[:])
	}
	param := twinParam{twin, dir, name}
	v, seen := r.seen[param]
	if !seen {
		v.value, v.ok = readSysctl(at, p, r.buf[:])
		r.seen[param] = v
	}
	return v.value, v.ok
}

// told reports whether netlink is known to tell of an IPv6 parameter of devices. It leaves out a few, and may leave
// out what later kernels add; of IPv4 and of neighbour tables it tells all.
func told(name string) bool {
	switch name {
	case "accept_dad", "accept_ra", "accept_ra_defrtr", "accept_ra_from_local", "accept_ra_min_hop_limit",
		"accept_ra_min_lft", "accept_ra_mtu", "accept_ra_pinfo", "accept_ra_rt_info_max_plen",
		"accept_ra_rt_info_min_plen", "accept_ra_rtr_pref", "accept_redirects", "accept_source_route",
		"accept_untracked_na", "autoconf", "dad_transmits", "disable_ipv6", "disable_policy",
		"drop_unicast_in_l2_multicast", "drop_unsolicited_na", "enhanced_dad", "force_forwarding",
		"force_mld_version", "force_tllao", "forwarding", "hop_limit", "ignore_routes_with_linkdown",
		"ioam6_enabled", "ioam6_id", "ioam6_id_wide", "keep_addr_on_down", "max_addresses", "max_desync_factor",
		"mc_forwarding", "mldv1_unsolicited_report_interval", "mldv2_unsolicited_report_interval", "mtu",
		"ndisc_evict_nocarrier", "ndisc_notify", "ndisc_tclass", "optimistic_dad", "proxy_ndp",
		"ra_defrtr_metric", "regen_max_retry", "router_probe_interval", "router_solicitation_delay",
		"router_solicitation_interval", "router_solicitation_max_interval", "router_solicitations",
		"rpl_seg_enabled", "seg6_enabled", "seg6_require_hmac", "suppress_frag_ndisc", "temp_prefered_lft", //nolint:misspell // the kernel's
		"temp_valid_lft", "use_oif_addrs_only", "use_optimistic", "use_tempaddr":
		return true
	}
	return false
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
		dir, err := os.Open(path.Join(sysctlRoot, p))
		if err != nil {
			return fmt.Errorf("list sysctls: %w", err)
		}
		defer dir.Close()
		entries, err := dir.ReadDir(-1)
		if err != nil {
			return fmt.Errorf("list sysctls: %w", err)
		}
		fd := int(dir.Fd())
		for _, e := range entries {
			p := path.Join(p, e.Name())
			switch {
			case e.IsDir() && sysctlDevice(p) != "":
			case e.IsDir():
				if err := walk(p); err != nil {
					return err
				}
			case sysctlCarried(p):
				if v, ok := readSysctl(fd, e.Name(), r.buf[:]); ok {
					files = append(files, sysctlFile{p, v})
				}
			}
		}
		return nil
	}
	err := walk("")
	return files, err
}

// device reads one device's parameters in the given directories of [perDevice].
func (r *sysctlReader) device(dev string, dirs ...string) []sysctlFile {
	files := make([]sysctlFile, 0, 128)
	for _, dir := range dirs {
		f, err := os.Open(path.Join(sysctlRoot, dir, dev))
		if err != nil {
			continue // the device takes no part in this protocol
		}
		at := int(f.Fd())
		for _, name := range r.namesIn(f, dir) {
			if v, ok := r.readDevice(dev, dir, name, at, name); ok {
				files = append(files, sysctlFile{dir + "/" + dev + "/" + name, v})
			}
		}
		f.Close()
	}
	return files
}

// namesIn lists the parameters that a device has in a directory of [perDevice], of which f is its own.
func (r *sysctlReader) namesIn(f *os.File, dir string) []string {
	names, ok := r.names[dir]
	if !ok {
		var err error
		if names, err = f.Readdirnames(-1); err != nil {
			return nil
		}
		names = slices.DeleteFunc(names, func(name string) bool { return !sysctlCarried(path.Join(dir, "x", name)) })
		slices.Sort(names)
		r.names[dir] = names
	}
	return names
}

// isLinkMTU tells a device's IPv6 MTU, which starts as the link's and not as default's.
func isLinkMTU(p string) bool {
	return strings.HasPrefix(p, "ipv6/conf/") && path.Base(p) == "mtu" && sysctlDevice(p) != ""
}

// defaultOf returns the path of the parameter from which a new device's one starts.
func defaultOf(p, dev string) string {
	return strings.Replace(p, "/"+dev+"/", "/default/", 1)
}

// captureSysctls reads the parameters of a namespace and of its devices.
//
// The IPv6 MTU of a device that equals its link's is left out: it follows from the link.
func captureSysctls(ctx context.Context, n *ns.NS, nl *rawnl.Conn, links []link) ([]Sysctl, error) {
	same, err := findTwins(ctx, nl, links)
	if err != nil {
		return nil, err
	}
	baseline := make(chan baseline, 1) // read meanwhile
	go func() { baseline <- freshLately() }()
	var files []sysctlFile
	r := newSysctlReader(same)
	err = n.Do(func() (err error) {
		files, err = r.namespace()
		return err
	})
	b := <-baseline
	if err = errors.Join(err, b.err); err != nil {
		return nil, fmt.Errorf("capture sysctls: %w", err)
	}
	fresh := b.values
	var all []Sysctl
	defaults := map[string]string{}
	err = n.Do(func() error {
		for _, f := range files {
			v, ok := fresh[f.path]
			if strings.HasPrefix(f.path, "mpls/conf/") && f.value == "0" {
				continue // as of every new device
			}
			all = append(all, Sysctl{Path: f.path, Value: f.value, Fresh: ok && v == f.value})
			defaults[f.path] = f.value
		}
		for p, v := range fresh {
			if _, ok := defaults[p]; !ok && strings.Contains(p, "/neigh/default/") {
				all = append(all, Sysctl{Path: p, Value: v, Fresh: true})
				defaults[p] = v
			}
		}
		for i := range links {
			dev := links[i].name
			mtu := strconv.FormatUint(uint64(rawnl.Uint32(links[i].attr(unix.IFLA_MTU))), 10)
			for _, f := range r.device(dev, perDevice()...) {
				if v, ok := defaults[defaultOf(f.path, dev)]; ok && v == f.value {
					continue
				}
				if isLinkMTU(f.path) && f.value == mtu {
					continue
				}
				all = append(all, Sysctl{Path: f.path, Value: f.value, Fresh: dev == "lo" && fresh[f.path] == f.value})
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("capture sysctls: %w", err)
	}
	slices.SortFunc(all, func(a, b Sysctl) int { return strings.Compare(a.Path, b.Path) })
	return all, nil
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
		for _, f := range append(files, r.device("lo", perDevice()...)...) {
			values[f.path] = f.value
			if strings.Contains(f.path, "/neigh/lo/") {
				values[defaultOf(f.path, "lo")] = f.value
			}
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

func sortSysctls(list []Sysctl) {
	slices.SortStableFunc(list, func(a, b Sysctl) int {
		if c := sysctlGroup(a.Path) - sysctlGroup(b.Path); c != 0 {
			return c
		}
		return sysctlRank(a.Path) - sysctlRank(b.Path)
	})
}

// namespaceSysctls returns the writes that are not a device's, in order.
func (s *State) namespaceSysctls() []Sysctl {
	var list []Sysctl
	for _, c := range s.Sysctls {
		if sysctlDevice(c.Path) == "" && !strings.Contains(c.Path, "/neigh/default/") {
			list = append(list, c)
		}
	}
	sortSysctls(list)
	return list
}

// deviceSysctls returns the writes for devices, in order: for each device its own values, and for the rest
// what new devices of the source started with.
func (s *State) deviceSysctls(devices []string) []Sysctl {
	defaults := map[string][]Sysctl{}
	own := map[string]bool{}
	var list []Sysctl
	for _, c := range s.Sysctls {
		for _, dir := range perDevice() {
			as := strings.Replace(c.Path, "/default/", "/x/", 1)
			if strings.HasPrefix(c.Path, dir+"/default/") && sysctlCarried(as) && !isLinkMTU(as) {
				defaults[dir] = append(defaults[dir], c)
			}
		}
		if dev := sysctlDevice(c.Path); dev != "" && slices.Contains(devices, dev) {
			own[c.Path] = true
			list = append(list, c)
		}
	}
	for _, dev := range devices {
		for _, dir := range perDevice() {
			for _, c := range defaults[dir] {
				p := dir + "/" + dev + "/" + path.Base(c.Path)
				if !own[p] {
					list = append(list, Sysctl{Path: p, Value: c.Value, Fresh: true})
				}
			}
		}
	}
	sortSysctls(list)
	return list
}

// writeSysctls sets those parameters that have another value, in the namespace of the calling thread. It
// returns those that can't be set yet, because the parameter does not exist or another one bounds it, and those
// that are not set here and needn't be: the namespace can't set them, so that the value was not its own choice,
// or a fresh namespace of the source host had the value.
func writeSysctls(list []Sysctl, same twins) (later, skipped []Sysctl) {
	r := newSysctlReader(same)
	for _, c := range list {
		have, ok := r.read(c.Path)
		if ok && have == c.Value {
			continue
		}
		delete(r.twins, sysctlDevice(c.Path)) // from now on it is like no other
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
