package vm

import (
	"cmp"
	"flag"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/wrenn/envd/client"
	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/test/vm/pattern"
)

// cycles is how often TestSoak freezes and restores its machine.
var cycles = flag.Int("cycles", 3, "snapshot and restore `cycles` of TestSoak")

const (
	// keep is how many quiet processes with output live through the soak.
	keep = 4
	// quietBytes is what each of them has printed: less than the daemon keeps.
	quietBytes = 50_000
)

// TestSoak freezes a busy machine, saves it, and restores it in another QEMU,
// again and again, each time the machine that was restored last. Every other
// time the host prepares it, and in two of four cycles all of the host's
// connections are gone as well, which the guest does not learn.
func TestSoak(t *testing.T) {
	needsRoot(t)
	m := boot(t, image{initrd: env.bare, params: []string{modulesParam(bareModules...)}})
	m.init(t)
	w := startWork(t, m)
	defer w.end(t)
	var quiets []quiet
	f := new(figures)
	for cycle := range *cycles {
		quiets = append(quiets, startQuiet(t, m, uint64(cycle)))
		if len(quiets) > keep {
			quiets[0].end(t, m)
			quiets = quiets[1:]
		}
		w.progress(t)
		w.check(t)
		m = f.cycle(t, m, w, cycle)
		for _, q := range quiets {
			q.check(t, m)
		}
		f.memory = append(f.memory, m.anonymous(t))
		m.prepare(t) // no freeze follows: live work goes on
		f.rested = append(f.rested, m.anonymous(t))
		if t.Failed() {
			t.Fatalf("in cycle %d", cycle)
		}
		if (cycle+1)%10 == 0 {
			t.Logf("%d cycles: %v", cycle+1, f)
		}
	}
	t.Logf("%d cycles, %d commands, %d bytes of output checked, %d uploads, %d calls cut off: %v",
		*cycles, w.starts.Load(), w.bytes.Load(), w.uploads.Load(), w.failures.Load(), f)
	f.checkMemory(t)
}

// cycle takes a machine through a snapshot and all that a host does after it.
func (f *figures) cycle(t *testing.T, m *machine, w *work, n int) *machine {
	w.away.Store(1)
	if n%2 == 1 {
		m.prepare(t)
	}
	s := m.snapshot(t)
	if n%4 < 2 {
		m.link.sever()
	}
	instance := fmt.Sprintf("sandbox-%d", n)
	m.link.meta.set(map[string]string{"instanceID": instance, "envID": "template"})
	began := time.Now()
	m = s.restore(t, m.link)
	must(t, os.Remove(s.file))
	running := time.Now()
	m.waitHealth(t, stepLimit)
	f.answer = append(f.answer, time.Since(running))
	m.init(t)
	f.ready = append(f.ready, time.Since(running))
	m.waitIdentity(t, instance)
	f.save, f.load, f.size = append(f.save, s.took), append(f.load, running.Sub(began)), append(f.size, s.size)
	f.again += m.checkClock(t)
	m.checkConnections(t)
	w.progress(t)
	w.away.Store(0)
	return m
}

// prepare does what a host does before a freeze.
func (m *machine) prepare(t testing.TB) {
	t.Helper()
	_, err := m.do(t.Context(), http.MethodPost, base+"/snapshot/prepare", "", nil)
	must(t, err)
}

// init does what a host does after each start and each restore.
func (m *machine) init(t testing.TB) {
	t.Helper()
	body := fmt.Sprintf(`{"timestamp": %q, "defaultUser": "root"}`, time.Now().UTC().Format(time.RFC3339Nano))
	_, err := m.do(t.Context(), http.MethodPost, base+"/init", "application/json", strings.NewReader(body))
	must(t, err)
}

// waitIdentity wants processes to see which sandbox they are in. The call of
// /init does not wait for a metadata service that takes its time.
func (m *machine) waitIdentity(t testing.TB, instance string) {
	t.Helper()
	for end := time.Now().Add(stepLimit); ; time.Sleep(10 * time.Millisecond) {
		out := m.output(t, "/guest", "env", "WRENN_SANDBOX_ID")
		if out == instance+"\n" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("a process is in sandbox %q instead of %q", out, instance)
		}
	}
}

// checkClock wants the guest's clock to be right after /init. That is as exact
// as the message was quick: a host that sees it take long sends another one, as
// this does. It answers how often.
func (m *machine) checkClock(t testing.TB) (more int) {
	t.Helper()
	const tolerance, most = 50 * time.Millisecond, 5
	for {
		off := m.clockOff(t)
		if off <= tolerance {
			return more
		}
		if more++; more > most {
			t.Fatalf("the clock is off by %v", off)
		}
		m.init(t)
	}
}

// clockOff tells how far the guest's clock is off at least.
func (m *machine) clockOff(t testing.TB) time.Duration {
	t.Helper()
	before := time.Now()
	out := m.output(t, "/guest", "clock")
	after := time.Now()
	nano, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	must(t, err)
	return max(0, before.Sub(time.Unix(0, nano)), time.Unix(0, nano).Sub(after))
}

// checkConnections wants the connections to nobody to be gone.
func (m *machine) checkConnections(t testing.TB) {
	t.Helper()
	const most = 3 // the client's, and one that is just being replaced
	established := fmt.Sprintf(":%04X ", 49983)
	for end := time.Now().Add(stepLimit); ; {
		n := 0
		for line := range strings.Lines(m.output(t, "/guest", "cat", "/proc/net/tcp6")) {
			// Local address, then remote, then the state: 01 is established.
			if fields := strings.Fields(line); len(fields) > 3 && strings.HasSuffix(fields[1]+" ", established) && fields[3] == "01" {
				n++
			}
		}
		if n <= most {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d connections are left", n)
		}
	}
}

// quiet is a process that has printed the pattern of its seed and only lives
// since then.
type quiet struct {
	pid  uint32
	seed uint64
}

func startQuiet(t testing.TB, m *machine, seed uint64) quiet {
	t.Helper()
	cmd, err := m.Start(t.Context(), request("/guest", "stream", strconv.FormatUint(seed, 10), strconv.Itoa(quietBytes)))
	must(t, err)
	defer cmd.Close()
	q := quiet{cmd.Pid(), seed}
	q.read(t, cmd)
	return q
}

func (q quiet) selector() *pb.ProcessSelector {
	return &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: q.pid}}
}

// read reads all that the process has printed.
func (q quiet) read(t testing.TB, cmd *client.Command) {
	t.Helper()
	for at := uint64(0); at < quietBytes; {
		e, err := cmd.Next(t.Context())
		if err != nil {
			t.Fatalf("quiet process %d at %d: %v", q.seed, at, err)
		}
		b := client.Output(e.GetData())
		if wrong := pattern.Check(b, q.seed, at); len(b) == 0 || wrong >= 0 {
			t.Fatalf("quiet process %d at %d: %v", q.seed, at, e)
		}
		at += uint64(len(b))
	}
}

// check wants the process to live, and its output whole.
func (q quiet) check(t testing.TB, m *machine) {
	t.Helper()
	cmd, err := m.Attach(t.Context(), q.selector(), 0)
	must(t, err)
	defer cmd.Close()
	q.read(t, cmd)
}

// end kills the process, and wants its output once more and then its end.
func (q quiet) end(t testing.TB, m *machine) {
	t.Helper()
	cmd, err := m.Attach(t.Context(), q.selector(), 0)
	must(t, err)
	defer cmd.Close()
	q.read(t, cmd)
	if err := cmd.Signal(t.Context(), 9); err != nil {
		// On a busy machine of two cores the guest may get no processor for
		// the two seconds that the call waits. The end tells.
		t.Logf("kill of quiet process %d: %v", q.seed, err)
	}
	if r, err := finish(t.Context(), cmd); err != nil || r.output != "" || r.end.GetStatus() != "signal: killed" {
		t.Errorf("quiet process %d ended with %v, %v", q.seed, r, err)
	}
}

// figures are what the cycles measured.
type figures struct {
	save, load    []time.Duration // QEMU's
	answer, ready []time.Duration // first answer, and /init done, after the restored machine runs
	again         int             // calls of /init because one came too late to set the clock right
	size          []int64         // of the snapshots, in bytes
	memory        []int64         // anonymous, of init, after each cycle, in bytes
	rested        []int64         // the same after a prepare, which gives back what is free
}

func (f *figures) String() string {
	ms := func(list []time.Duration) string {
		return fmt.Sprintf("%d ms (%d at most)", median(list).Milliseconds(), slices.Max(list).Milliseconds())
	}
	mib := func(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }
	return fmt.Sprintf("save %s, load %s, then first answer %s, /init done %s (%d repeated for the clock); snapshot %s; init anonymous %s, %s at most, after a prepare %s",
		ms(f.save), ms(f.load), ms(f.answer), ms(f.ready), f.again, mib(median(f.size)), mib(median(f.memory)), mib(slices.Max(f.memory)), mib(median(f.rested)))
}

// checkMemory wants what the daemon holds after a prepare to be bounded and, once
// the output that it keeps is as much as it keeps, the same in the last third of
// the cycles as in the first. What it holds in the middle of the work is, beside
// that, the collector's to decide.
func (f *figures) checkMemory(t testing.TB) {
	t.Helper()
	const most, growth = 16 << 20, 2 << 20
	const filling = 10 // cycles until the output kept is the most that there may be
	if held := median(f.rested); held > most {
		t.Errorf("init holds %d KiB after a prepare", held>>10)
	}
	if len(f.rested) < 4*filling {
		return
	}
	rested := f.rested[filling:]
	third := len(rested) / 3
	first, last := median(rested[:third]), median(rested[len(rested)-third:])
	t.Logf("init after a prepare: %d KiB in the first third, %d KiB in the last", first>>10, last>>10)
	if last > first+growth {
		t.Errorf("init has grown from %d to %d KiB", first>>10, last>>10)
	}
}

func median[T cmp.Ordered](list []T) T {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[len(sorted)/2]
}

// anonymous is how much memory of init no file backs, in bytes.
func (m *machine) anonymous(t testing.TB) int64 {
	t.Helper()
	_, after, _ := strings.Cut(m.output(t, "/guest", "cat", "/proc/1/smaps_rollup"), "Anonymous:")
	kib, err := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
	must(t, err)
	return kib << 10
}
