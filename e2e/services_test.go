package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/nsmigrate/nsmigrate/e2e/peer/seq"
)

// waysToMove are the ways in which a real service is moved back and forth: through an image, and live.
var waysToMove = []struct {
	name, family string
	move         func(w *world, n int, loads ...*client)
}{
	{"IPv4", "4", (*world).moves},
	{"IPv6", "6", (*world).moves},
	{"IPv4, live", "4", (*world).migrations},
	{"IPv6, live", "6", (*world).migrations},
}

// redis under constant load keeps its client, its keys and their values.
func TestRedis(t *testing.T) {
	for _, how := range waysToMove {
		t.Run(how.name, func(t *testing.T) {
			w := newWorld(t)
			family := how.family
			w.daemon(w.A, inSvc+"redis-server --bind %s %s --protected-mode no --save '' --dir %s", w.svc.IPv4, w.svc.IPv6, w.Dir)
			w.listening("6379")
			c := w.load("--mode", "redis", "--connect", w.svc.Addr(family, 6379), "--conns", "4", "--period", "2ms")
			how.move(w, rounds, c)
			r := c.stop()
			if r.Keys == 0 {
				t.Error("no key was read back")
			}
			t.Logf("%d exchanges, %d keys read back, longest gap %.0f ms", r.Exchanges, r.Keys, r.LongestGap)
		})
	}
}

// nginx in the middle of a download: the file arrives whole over its one connection. The client reads so slowly that
// nothing but its own wish ends the download.
func TestNginx(t *testing.T) {
	const size, rate = 128 << 20, 1 << 20 // bytes, bytes a second
	for _, how := range waysToMove {
		t.Run(how.name, func(t *testing.T) {
			w := newWorld(t)
			family := how.family
			dir := filepath.Join(w.Dir, "nginx")
			w.check(os.Mkdir(dir, 0o755))
			content := make([]byte, size)
			seq.Stream(2).Fill(content, 0) // the stream of connection 1 to the server
			w.check(os.WriteFile(filepath.Join(dir, "big"), content, 0o644))
			config := filepath.Join(dir, "nginx.conf")
			w.check(os.WriteFile(config, fmt.Appendf(nil, nginxConfig, dir), 0o644))
			w.daemon(w.A, inSvc+"nginx -c %s", config)
			w.listening("80")
			c := w.load("--mode", "fetch", "--path", "/big", "--read-rate", fmt.Sprint(rate), "--connect", w.svc.Addr(family, 80))
			how.move(w, rounds, c)
			r := c.stop()
			if r.Received != uint64(len(content)) {
				t.Errorf("%d of %d bytes arrived", r.Received, len(content))
			}
			t.Logf("%d bytes compared, longest gap %.0f ms", r.Received, r.LongestGap)
		})
	}
}

const nginxConfig = `
daemon off;
user root;
worker_processes 2;
pid %[1]s/pid;
error_log %[1]s/error.log;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	sendfile on;
	server {
		listen 80;
		listen [::]:80;
		root %[1]s;
		send_timeout 10m;
	}
}
`
