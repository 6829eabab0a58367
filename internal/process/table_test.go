package process

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/cgroup"
	"github.com/wrenn/envd/internal/leaktest"
)

func tagged(s *Spec, tag string) *Spec {
	s.Tag, s.HasTag = tag, true
	return s
}

// Among equal tags the newest that runs wins, else the newest that ended; one
// that ended does not hide older ones.
func TestTags(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		var ps []*Process
		for i := range 6 {
			p, rd := r.start(tagged(spec("sleep", "300"), "t"))
			defer rd.close()
			ps = append(ps, p)
			other, od := r.start(tagged(spec("sleep", "300"), fmt.Sprint("other", i)))
			defer od.close()
			defer other.Kill()
		}
		want := func(p *Process) {
			t.Helper()
			if got, err := r.table.ByTag("t"); got != p || err != nil {
				t.Errorf("by tag: %v, %v; want %d", got, err, p.serial)
			}
		}
		kill := func(i int) {
			t.Helper()
			must(t, ps[i].Kill())
			wait(t, "the end", ps[i].exited)
		}
		want(ps[5])
		kill(5)
		want(ps[4])
		kill(2)
		want(ps[4])
		for _, i := range []int{4, 3, 1} {
			kill(i)
		}
		want(ps[0]) // the only one of six that runs
		kill(0)
		want(ps[5])
		_, err := r.table.ByTag("none")
		wantError(t, err, ErrUnknown)
		_, err = r.table.ByTag("")
		wantError(t, err, ErrUnknown)
		if !strings.Contains(err.Error(), "not found") {
			t.Errorf("text %q does not say so", err)
		}
		empty, ed := r.start(tagged(spec("sleep", "300"), ""))
		defer ed.close()
		if got, err := r.table.ByTag(""); got != empty || err != nil {
			t.Errorf("by empty tag: %v, %v", got, err)
		}
		must(t, empty.Kill())
	})
}

// A pid that is used again leads to the newest process of that number, and the
// old one's end does not take it away.
func TestPidReuse(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		old, od := r.start(spec("true"))
		od.all()
		od.close()
		young, yd := r.start(spec("sleep", "300"))
		defer yd.close()
		table := r.table
		table.mu.Lock()
		table.pids[old.Pid()] = young // as if the kernel had reused the number
		table.mu.Unlock()
		if got, err := table.ByPid(old.Pid()); got != young || err != nil {
			t.Errorf("by pid: %v, %v", got, err)
		}
		table.mu.Lock()
		table.forgetLocked(old)
		table.mu.Unlock()
		if got, err := table.ByPid(old.Pid()); got != young || err != nil {
			t.Errorf("by pid after the old one is forgotten: %v, %v", got, err)
		}
		wantError(t, old.Kill(), ErrFinished)
		if !young.Running() || !alive(young.Pid()) {
			t.Error("the old one's signal hit the new one")
		}
		must(t, young.Kill())
		yd.all()
	})
}

// Ended processes answer for the retention, with their output, and are then
// forgotten, in the order of their ends.
func TestRetention(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Retain = 250 * time.Millisecond
	var forgotten atomic.Int32
	cfg.Forgotten = func() { forgotten.Add(1) }
	bothModesWith(t, cfg, func(t *testing.T, r *rig) {
		p, rd := r.start(tagged(shell("echo text; exit 6"), "t"))
		rd.all()
		rd.close()
		for _, find := range []func() (*Process, error){
			func() (*Process, error) { return r.table.ByPid(p.Pid()) },
			func() (*Process, error) { return r.table.ByTag("t") },
		} {
			got, err := find()
			if got != p || err != nil {
				t.Fatalf("found %v, %v", got, err)
			}
			again := r.attach(got, 0)
			if out, exit := again.all(); out != "text\n" || exit.Code() != 6 {
				t.Errorf("%q, %v", out, exit)
			}
			again.close()
		}
		if l := r.table.List(false); len(l) != 0 {
			t.Errorf("%d in the list of the running", len(l))
		}
		if l := r.table.List(true); !slices.Equal(l, []*Process{p}) {
			t.Errorf("the list is %v", l)
		}
		if n := forgotten.Load(); n != 0 {
			t.Errorf("told of %d forgotten processes", n)
		}
		ended := time.Now()
		eventually(t, "the process to be forgotten", func() bool { return len(r.table.List(true)) == 0 })
		if n := forgotten.Swap(0); n != 1 {
			t.Errorf("told of %d forgotten processes, not 1", n)
		}
		if d := time.Since(ended); d < cfg.Retain-100*time.Millisecond {
			t.Errorf("forgotten after %v, retention %v", d, cfg.Retain)
		}
		_, err := r.table.ByPid(p.Pid())
		wantError(t, err, ErrUnknown)
		_, err = r.table.ByTag("t")
		wantError(t, err, ErrUnknown)
		if used := r.table.budget.used.Load(); used != 0 {
			t.Errorf("%d bytes of output kept", used)
		}
	})
}

// At rest for a snapshot nothing is forgotten, and afterwards what is due is.
func TestQuiesceKeepsEnded(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Retain = 50 * time.Millisecond
	bothModesWith(t, cfg, func(t *testing.T, r *rig) {
		long, rd := r.start(shell("sleep 100"))
		rd.close()
		for range 2 { // one ends before, one meanwhile
			r.run(shell("exit 0"))
			must(t, r.table.Quiesce(t.Context()))
		}
		before := len(r.table.List(true))
		// What is timed otherwise goes on: it shows that time passes.
		long.KillAfter(4 * cfg.Retain)
		eventually(t, "the kill", func() bool { return long.Exit() != nil })
		if after := r.table.List(true); len(after) != before || before < 2 {
			t.Errorf("%d processes are known, then %d", before, len(after))
		}
		r.table.Resume()
		eventually(t, "the processes to be forgotten", func() bool { return len(r.table.List(true)) == 0 })
	})
}

// Close ends everything: what obeys SIGTERM, what ignores it, what is stopped,
// what the leaders left, and attached readers get their ends.
func TestCloseEndsEverything(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		var pids []int
		var rds []*reader
		for _, script := range []string{
			"trap 'echo obeyed; exit 8' TERM; echo pid $$; while :; do sleep 0.02; done",
			"trap '' TERM; echo pid $$; while :; do sleep 0.02; done",
			"echo pid $$; kill -STOP $$",
			"setsid sleep 300 >/dev/null 2>&1 & echo pid $!; exit",
			"sleep 300 & echo pid $!; exit",
			"echo pid $$; exec yes >&2",
		} {
			_, rd := r.start(shell(script))
			pids = append(pids, rd.number("pid"))
			rds = append(rds, rd)
		}
		// One that nobody has read yet, and one whose leader is to end alone.
		r.start(onTerminal(shell("sleep 300 & cat")))
		r.close()
		for i, pid := range pids {
			eventually(t, "everything to be gone", func() bool { return !alive(pid) })
			rd := rds[i]
			if _, exit := rd.all(); i == 0 && exit.Code() != 8 || i == 1 && exit.String() != "signal: killed" {
				t.Errorf("process %d ended with %v", i, exit)
			}
			rd.close()
		}
	})
}

// Starts that race with Close are refused or ended; none is left, and who ends
// by itself has all of its output read.
func TestCloseWhileStarting(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		table := r.table
		var wg sync.WaitGroup
		for n := range 8 {
			s := shell("sleep 300 & echo x; exit 7")
			if n%2 == 1 {
				s = onTerminal(s)
			}
			wg.Go(func() {
				for {
					p, c, err := table.Start(s)
					if err != nil {
						wantError(t, err, ErrClosed)
						return
					}
					defer func() {
						wait(t, "the end", p.exited)
						rd := newReader(t, c)
						defer rd.close()
						if out, exit := rd.all(); exit.Code() == 7 && !strings.HasPrefix(out, "x") {
							t.Errorf("%v, but the output is %q", exit, out)
						}
					}()
				}
			})
		}
		time.Sleep(30 * time.Millisecond) // some run
		r.close()
		wg.Wait()
	})
}

// The memory and descriptors of a burst of commands do not stay.
func TestBurstLeavesNothing(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Retain = 20 * time.Millisecond
	bothModesWith(t, cfg, func(t *testing.T, r *rig) {
		descriptors := func() int {
			entries, err := os.ReadDir("/proc/self/fd")
			must(t, err)
			return len(entries)
		}
		heap := func() int64 {
			runtime.GC()
			runtime.GC() // pools keep what they hold through one collection
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		// What is opened once stays; the groups made ahead do not.
		forgotten := func() bool {
			if len(r.table.List(true)) > 0 {
				return false
			}
			if r.groups != nil {
				r.groups.Trim()
			}
			return true
		}
		r.run(spec("true"))
		eventually(t, "the first to be forgotten", forgotten)
		before, heapBefore := descriptors(), heap()
		for range 4 {
			var wg sync.WaitGroup
			for range 50 {
				_, rd := r.start(tagged(shell("head -c 20000 /dev/zero; exit 1"), "burst"))
				wg.Go(func() {
					defer rd.close()
					if out, _ := rd.all(); len(out) != 20000 {
						t.Errorf("%d bytes", len(out))
					}
				})
			}
			wg.Wait()
		}
		eventually(t, "the processes to be forgotten", forgotten)
		eventually(t, "the descriptors to be closed", func() bool { return descriptors() <= before })
		// 200 commands with 4 MB of output.
		if grown := heap() - heapBefore; grown > 1<<20 {
			t.Errorf("%d KiB of memory stay", grown>>10)
		}
		r.table.mu.Lock()
		defer r.table.mu.Unlock()
		if n := len(r.table.pids) + len(r.table.tags) + len(r.table.expiry); n != 0 {
			t.Errorf("%d entries left in the table", n)
		}
		if used := r.table.budget.used.Load(); used != 0 {
			t.Errorf("%d bytes of output kept", used)
		}
	})
}

// A start that comes before the machine is ready for commands waits.
func TestStartBeforeGroupsAreKnown(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		groups := r.table.groups
		asked, known := make(chan struct{}), make(chan struct{})
		r.table.groups = func() *cgroup.Hierarchy {
			close(asked)
			<-known
			return groups()
		}
		started := make(chan error, 1)
		go func() {
			_, c, err := r.table.Start(shell("exit 3"))
			if err == nil {
				c.Close()
			}
			started <- err
		}()
		<-asked
		if n := len(r.table.List(true)); n != 0 {
			t.Errorf("%d processes before", n)
		}
		close(known)
		if err := <-started; err != nil {
			t.Error(err)
		}
		eventually(t, "the end", func() bool { return len(r.table.List(false)) == 0 })
		r.table.groups = groups
	})
}

// Close waits for a start that it came too late to refuse: that command is
// asked to end as all are, and what it wrote is read.
func TestCloseDuringAStart(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		table := r.table
		r.table = nil // closed here
		asked, known := make(chan struct{}), make(chan struct{})
		table.groups = sync.OnceValue(func() *cgroup.Hierarchy {
			close(asked)
			<-known
			return r.groups
		})
		var rd *reader
		started, closed := make(chan error, 1), make(chan struct{})
		go func() {
			_, c, err := table.Start(spec("sleep", "300"))
			rd = newReader(t, c)
			started <- err
		}()
		<-asked
		go func() { defer close(closed); table.Close(t.Context()) }()
		refused := func() bool {
			table.mu.Lock()
			defer table.mu.Unlock()
			return table.closing
		}
		eventually(t, "later starts to be refused", refused)
		time.Sleep(20 * time.Millisecond) // Close goes as far as it does
		close(known)
		must(t, <-started)
		defer rd.close()
		_, exit := rd.all()
		wantExit(t, exit, "signal: terminated")
		wait(t, "the table to be closed", closed)
	})
}

// crowd is a gate that lets nobody through until it is open, and counts.
type crowd struct {
	open chan struct{}

	mu       sync.Mutex
	in, most int // guarded by mu
}

func (c *crowd) Enter() (leave func(), err error) {
	c.add(1)
	<-c.open
	return func() { c.add(-1) }, nil
}

func (c *crowd) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.in += n
	c.most = max(c.most, c.in)
}

func (c *crowd) count() (in, most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.in, c.most
}

// However many starts there are at once, a snapshot has to wait for few of
// them, and few hold descriptors. All succeed in the end.
func TestStartsTakeTurns(t *testing.T) {
	gate := &crowd{open: make(chan struct{})}
	cfg := DefaultConfig()
	cfg.Gate = gate
	r := newRig(t, cfg, true)
	const many = 10 * maxStarting
	var wg sync.WaitGroup
	for range many {
		wg.Go(func() {
			_, rd := r.start(spec("true"))
			defer rd.close()
			_, exit := rd.all()
			wantExit(t, exit, "exit status 0")
		})
	}
	eventually(t, "the gate to be crowded", func() bool { in, _ := gate.count(); return in == maxStarting })
	time.Sleep(20 * time.Millisecond) // the others come as far as they do
	close(gate.open)
	wg.Wait()
	if _, most := gate.count(); most > maxStarting {
		t.Errorf("%d starts at once", most)
	}
}

// The marks of two daemons differ, also when one memory image became both: they
// are drawn from the system, when they are first needed.
func TestMarksDiffer(t *testing.T) {
	leaktest.Check(t)
	ids := make(map[string]bool)
	for range 2 {
		table, err := OpenTable(DefaultConfig(), nil, nil)
		must(t, err)
		if id := table.id(); len(id) < 20 || id != table.id() {
			t.Errorf("id %q, then %q", id, table.id())
		}
		ids[table.id()] = true
		table.Close(t.Context())
	}
	if len(ids) != 2 {
		t.Errorf("ids %v", ids)
	}
}
