package checkpoint

import (
	"math"
	"os"
	"strings"
	"testing"

	"github.com/nsmigrate/nsmigrate/checkpoint/proc"
)

func TestRoom(t *testing.T) {
	const mib = 1 << 20
	for _, tt := range []struct {
		name  string
		needs Needs
		room  room
		want  []string
	}{
		{"enough", Needs{Memory: 10 * mib, Image: true, Processes: true}, room{"/run", 10 * mib, true, 20 * mib}, nil},
		{"nothing is needed", Needs{Memory: 10 * mib}, room{"/run", 0, true, 0}, nil},
		{"the image alone", Needs{Memory: 10 * mib, Image: true}, room{"/tmp", 10 * mib, false, 0}, nil},
		{
			"a small tmpfs",
			Needs{Memory: 10 * mib, Image: true, Processes: true},
			room{"/run", 9 * mib, true, 20 * mib},
			[]string{"memory /run: the image of 10.0 MiB of memory is gathered there, and 9.0 MiB are free"},
		},
		{
			"no memory for both",
			Needs{Memory: 10 * mib, Image: true, Processes: true},
			room{"/run", 30 * mib, true, 19 * mib},
			[]string{"memory of this host: the service has 10.0 MiB, which it needs twice for a moment, once for its image, and 19.0 MiB are available"},
		},
		{
			"no memory for the processes",
			Needs{Memory: 10 * mib, Image: true, Processes: true},
			room{"/tmp", mib, false, mib},
			[]string{
				"memory /tmp: the image of 10.0 MiB of memory is gathered there, and 1.0 MiB are free",
				"memory of this host: the service has 10.0 MiB, and 1.0 MiB are available",
			},
		},
		{
			"what nobody has",
			Needs{Memory: 1<<63 - 1, Processes: true, Image: true},
			room{"/run", 1<<63 - 1, true, 1 << 62},
			[]string{"memory of this host: the service has 8.0 EiB, and 4.0 EiB are available"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, p := range tt.needs.check(tt.room) {
				text, _, _ := strings.Cut(p.String(), "\n")
				got = append(got, text)
			}
			if strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

func TestAvailable(t *testing.T) {
	n, err := available([]byte("MemTotal:  9 kB\nMemAvailable:    1000 kB\nHugePages_Total:       0\nSwapFree:   24 kB\n"))
	if err != nil || n != 1<<20 {
		t.Errorf("got %d, %v", n, err)
	}
	for _, bad := range []string{"", "MemTotal: 1 kB\n", "MemAvailable: x kB\n", "MemAvailable: 1\n", "MemAvailable: -1 kB\n"} {
		if n, err := available([]byte(bad)); err == nil {
			t.Errorf("%q is %d", bad, n)
		}
	}
}

// Memory of this process that it has just filled is found, and there is room for it.
func TestMemoryOf(t *testing.T) {
	memory := make([]byte, 64<<20)
	for i := range memory {
		memory[i] = byte(i)
	}
	n, err := memoryOf([]proc.Tree{{Processes: []proc.Process{{PID: os.Getpid()}}}})
	if err != nil || n < 64<<20 {
		t.Errorf("got %d, %v", n, err)
	}
	if memory[1<<20+7] != 7 {
		t.Error("it is not kept")
	}
	if _, err := CheckRoom(Needs{Memory: 1, Image: true, Processes: true}); err != nil {
		t.Error(err)
	}
	problems, err := CheckRoom(Needs{Memory: 1 << 60, Image: true, Processes: true})
	if err != nil || len(problems) != 2 {
		t.Errorf("%v, %v", problems, err)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 5 << 20: "5.0 MiB", 3 << 30: "3.0 GiB", math.MaxInt64: "8.0 EiB",
	} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
}
