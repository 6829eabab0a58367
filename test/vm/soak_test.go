package vm

import (
	"cmp"
	"flag"
	"fmt"
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
	keep = 6
	// quietBytes is what each of them has printed: less than the daemon keeps.
	quietBytes = 100_000
)

// TestSoak freezes a busy machine, saves it, and restores it in another QEMU,
// again and again, each time the machine that was restored last. Every other
// time all of the host's connections are gone as well, which the guest does not
// learn.
func TestSoak(t *testing.T) {
	needsRoot(t)
	m := boot(t, image{initrd: env.bare, params: []string{modulesParam(bareModules...)}})
	w := startWork(t, m.Client)
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
		w.away.Store(1)
		s := m.snapshot(t)
		if cycle%2 == 0 {
			m.link.sever()
		}
		began := time.Now()
		restored := s.restore(t, m.link)
		must(t, os.Remove(s.file))
		loaded := time.Since(began)
		m = restored
		m.waitHealth(t, stepLimit)
		f.add(s, loaded, time.Since(began))
		w.progress(t)
		w.away.Store(0)
		for _, q := range quiets {
			q.check(t, m)
		}
		f.memory = append(f.memory, m.anonymous(t))
		if t.Failed() {
			t.Fatalf("in cycle %d", cycle)
		}
		if (cycle+1)%10 == 0 {
			t.Logf("%d cycles: %v", cycle+1, f)
		}
	}
	t.Logf("%d cycles, %d commands, %d bytes of output checked, %d calls cut off: %v",
		*cycles, w.starts.Load(), w.bytes.Load(), w.failures.Load(), f)
	f.checkMemory(t)
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
	save, load, answer []time.Duration
	size               []int64 // of the snapshots, in bytes
	memory             []int64 // anonymous, of init, after each cycle, in bytes
}

func (f *figures) add(s *saved, load, answer time.Duration) {
	f.save, f.load, f.answer = append(f.save, s.took), append(f.load, load), append(f.answer, answer)
	f.size = append(f.size, s.size)
}

func (f *figures) String() string {
	return fmt.Sprintf("save %v, load %v, first answer %v after QEMU's start (medians), snapshot %d MiB, init %.1f MiB anonymous (median), %.1f at most",
		median(f.save).Round(time.Millisecond), median(f.load).Round(time.Millisecond), median(f.answer).Round(time.Millisecond),
		median(f.size)>>20, float64(median(f.memory))/(1<<20), float64(slices.Max(f.memory))/(1<<20))
}

// checkMemory wants the daemon to be no larger in the end than at first: the
// last third of the cycles against the first.
func (f *figures) checkMemory(t testing.TB) {
	t.Helper()
	const growth = 4 << 20
	third := max(1, len(f.memory)/3)
	first, last := median(f.memory[:third]), median(f.memory[len(f.memory)-third:])
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
