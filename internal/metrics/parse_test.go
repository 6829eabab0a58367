package metrics

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const stat = `cpu  100 20 30 1000 50 1 2 3 0 0
cpu0 50 10 15 500 25 1 1 2 0 0
cpu1 50 10 15 500 25 0 1 1 0 0
intr 1 2 3
ctxt 4
`

func TestParseStat(t *testing.T) {
	c, err := parseStat([]byte(stat))
	must(t, err)
	want := [...]int64{1000, 200, 300, 10000, 500, 10, 20, 30}
	for i, ms := range want {
		if c.Time[i].Milliseconds() != ms {
			t.Errorf("%s: %v", modes[i], c.Time[i])
		}
	}
	if c.Count != 2 {
		t.Errorf("%d processors", c.Count)
	}
	busy, total := c.busy()
	if busy != 1560*time.Millisecond || total != 12060*time.Millisecond {
		t.Errorf("busy %v of %v", busy, total)
	}
	if c, err := parseStat([]byte("cpu  1 2 3 4\ncpu0 1 2 3 4\n")); err != nil || c.Count != 1 || c.Time[3] != 4*jiffy {
		t.Errorf("old kernel: %+v, %v", c, err)
	}
	for _, bad := range []string{"", "intr 1\n", "cpu  x\n", "cpu  1 -2 3\n", "cpu  99999999999999999999\n"} {
		if c, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, c)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestParseMeminfo(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want Memory
		bad  bool
	}{
		{"MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable: 60 kB\nBuffers: 1 kB\nCached: 40 kB\nSReclaimable: 5 kB\n", Memory{100 << 10, 40 << 10, 45 << 10}, false},
		{"MemTotal: 100 kB\nMemFree: 10 kB\nBuffers: 1 kB\nCached: 40 kB\n", Memory{100 << 10, 49 << 10, 40 << 10}, false},
		{"MemTotal: 100 kB\nMemAvailable: 200 kB\n", Memory{100 << 10, 0, 0}, false},
		{"", Memory{}, true},
		{"MemTotal: lots kB\n", Memory{}, true},
		{"MemTotal: 99999999999999999999 kB\n", Memory{}, true},
		{"MemFree: 1 kB\n", Memory{}, true},
	} {
		got, err := parseMeminfo([]byte(tc.in))
		if got != tc.want || (err != nil) != tc.bad {
			t.Errorf("%q: %+v, %v", tc.in, got, err)
		}
	}
}

func TestParsePressure(t *testing.T) {
	const text = "some avg10=0.00 avg60=0.13 avg300=0.20 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
	p, err := parsePressure([]byte(text))
	if want := (Pressure{1500 * time.Millisecond, 7 * time.Microsecond}); err != nil || p != want {
		t.Errorf("got %+v, %v", p, err)
	}
	if p, err := parsePressure([]byte("some avg10=0.00 total=x\n")); err == nil {
		t.Errorf("got %+v", p)
	}
}

// TestReadAll reads this machine's figures: they have to be possible.
func TestReadAll(t *testing.T) {
	cpu, err := ReadCPU()
	must(t, err)
	busy, total := cpu.busy()
	if cpu.Count < 1 || busy <= 0 || busy >= total {
		t.Errorf("processors: %+v", cpu)
	}
	mem, err := ReadMemory()
	must(t, err)
	if mem.Total < 16<<20 || mem.Used == 0 || mem.Used > mem.Total || mem.Cache > mem.Total {
		t.Errorf("memory: %+v", mem)
	}
	disk, err := ReadDisk("/")
	must(t, err)
	if disk.Total == 0 || disk.Used > disk.Total {
		t.Errorf("disk: %+v", disk)
	}
	if _, err := ReadDisk("/nonesuch"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("disk of nothing: %v", err)
	}
	for _, r := range Resources {
		if _, err := ReadPressure(r); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("pressure on %s: %v", r, err)
		}
	}
	before, err := ReadSelf()
	must(t, err)
	f, err := os.Open("/dev/null")
	must(t, err)
	defer f.Close()
	stop := make(chan struct{})
	defer close(stop)
	go func() { <-stop }()
	after, err := ReadSelf()
	must(t, err)
	if after.Descriptors != before.Descriptors+1 || after.Goroutines < before.Goroutines+1 || after.Threads < 1 ||
		after.CPU < before.CPU || after.Resident < 1<<20 || after.Anonymous > after.Resident || after.Heap == 0 {
		t.Errorf("self: %+v, then %+v", before, after)
	}
}

func TestUsage(t *testing.T) {
	begin := time.Now()
	cpu := func(busy, idle time.Duration) CPU {
		var c CPU
		c.Time[0], c.Time[3] = busy, idle
		return c
	}
	type call struct {
		after      time.Duration
		busy, idle time.Duration
		want       float64
	}
	for _, tc := range []struct {
		name  string
		begun bool
		calls []call
	}{
		{"first since boot", false, []call{{0, 25 * time.Second, 75 * time.Second, 25}}},
		{"first since the beginning", true, []call{{2 * time.Second, 11 * time.Second, 91 * time.Second, 50}}},
		{"first too soon", true, []call{{time.Second / 2, 20 * time.Second, 80 * time.Second, 20}}},
		{"since the last", true, []call{
			{2 * time.Second, 11 * time.Second, 91 * time.Second, 50},
			{4 * time.Second, 13 * time.Second, 91 * time.Second, 100},
			{6 * time.Second, 13 * time.Second, 93 * time.Second, 0},
		}},
		{"often", true, []call{
			{2 * time.Second, 11 * time.Second, 91 * time.Second, 50},
			{2*time.Second + time.Second/2, 12 * time.Second, 91 * time.Second, 100 * 2.0 / 3},
			{2*time.Second + time.Second*3/4, 12 * time.Second, 92 * time.Second, 50},
			{4 * time.Second, 12 * time.Second, 93 * time.Second, 100.0 / 3},
		}},
		{"backwards", true, []call{{2 * time.Second, 9 * time.Second, 92 * time.Second, 0}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var u Usage
			if tc.begun {
				u.Begin(begin, cpu(10*time.Second, 90*time.Second))
			}
			for i, c := range tc.calls {
				if got := u.Percent(begin.Add(c.after), cpu(c.busy, c.idle)); math.Abs(got-c.want) > 1e-9 {
					t.Errorf("call %d: %v, want %v", i, got, c.want)
				}
			}
		})
	}
}

// FuzzParse feeds all parsers of /proc: they read it or say so.
func FuzzParse(f *testing.F) {
	f.Add([]byte(stat))
	f.Add([]byte("MemTotal: 100 kB\nMemAvailable: 60 kB\n"))
	f.Add([]byte("some avg10=0.00 avg60=0.13 avg300=0.20 total=1500000\n"))
	f.Add([]byte("VmRSS:\t 1234 kB\nRssAnon: 5 kB\nThreads:\t7\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := parseStat(b); err == nil {
			for i, d := range c.Time {
				if d < 0 {
					t.Errorf("%s: %v", modes[i], d)
				}
			}
		}
		if m, err := parseMeminfo(b); err == nil && (m.Total == 0 || m.Used > m.Total) {
			t.Errorf("memory %+v", m)
		}
		if p, err := parsePressure(b); err == nil && (p.Waiting < 0 || p.Stalled < 0) {
			t.Errorf("pressure %+v", p)
		}
		_, _ = parseStatus(b)
	})
}
