package process

import (
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Any sequence of writes, attaches, reads and closes: every byte is accounted
// for, nothing is silently short, and a cursor that is alone is never cut off.
func TestOutputModel(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		window := 1 << (12 + rnd.IntN(8)) // 4 KiB to 512 KiB
		w := newLog(window)
		var taps []*tap
		cut := func(i int) {
			if taps[i].alone {
				t.Fatalf("seed %d: a cursor that was always alone was cut off", seed)
			}
			taps[i].c.Close()
			taps = slices.Delete(taps, i, i+1)
		}
		for range 800 {
			switch op := rnd.IntN(20); {
			case op < 10:
				size := 1 + rnd.IntN([]int{1, 80, 5_000, 200_000}[rnd.IntN(4)])
				if !w.put(Stream(1+rnd.IntN(2)), size) && len(taps) == 0 {
					t.Fatalf("seed %d: a writer without readers waits", seed)
				}
				if limit := window + 200_000 + blockSize; w.o.cost > limit {
					t.Fatalf("seed %d: %d bytes kept, window %d", seed, w.o.cost, window)
				}
			case op == 10 && len(taps) < 5:
				offset := Now
				if rnd.IntN(3) > 0 {
					offset = rnd.Int64N(w.end + 1)
				}
				taps = append(taps, w.attach(t, offset))
				for _, p := range taps {
					p.alone = p.alone && len(taps) == 1
				}
			case op == 11 && len(taps) > 0:
				i := rnd.IntN(len(taps))
				taps[i].c.Close()
				taps = slices.Delete(taps, i, i+1)
			case len(taps) > 0:
				i := rnd.IntN(len(taps))
				if _, err := taps[i].take(1 + rnd.IntN(60_000)); err != nil {
					cut(i)
				}
			}
		}
		w.o.finish(Exit{})
		for i := len(taps) - 1; i >= 0; i-- {
			for err := error(nil); err == nil && !taps[i].ended; {
				_, err = taps[i].take(32 << 10)
				if err == nil && taps[i].ended && taps[i].next != w.end {
					t.Fatalf("seed %d: ended at %d of %d", seed, taps[i].next, w.end)
				}
				if err != nil {
					cut(i)
					break
				}
			}
		}
		for _, p := range taps {
			p.c.Close()
		}
		w.o.drop()
		if w.o.cost != 0 || w.o.budget.used.Load() != 0 || w.o.chunks.first() != nil {
			t.Fatalf("seed %d: cost %d, budget %d after the drop", seed, w.o.cost, w.o.budget.used.Load())
		}
	}
}

// A cursor that is alone makes the writer wait, and gets everything.
func TestOutputAloneIsNeverCutOff(t *testing.T) {
	w := newLog(64 << 10)
	p := w.attach(t, 0)
	waited := 0
	for w.end < 4<<20 {
		if !w.put(Stdout, 10_000) {
			waited++
			if _, err := p.take(32 << 10); err != nil {
				t.Fatal(err)
			}
		}
	}
	if waited == 0 {
		t.Error("the writer never waited")
	}
	for p.next < w.end {
		if _, err := p.take(32 << 10); err != nil {
			t.Fatal(err)
		}
	}
	p.c.Close()
}

// The fastest cursor sets the pace. One that falls further behind than the
// window is cut off with an offset to go on from; from there it gets the rest,
// or a gap that says what is gone.
func TestOutputSlowCursorIsCutOff(t *testing.T) {
	const window = 128 << 10
	w := newLog(window)
	fast, slow := w.attach(t, 0), w.attach(t, 0)
	for w.end < window/2 {
		w.put(Stdout, 10_000)
	}
	if _, err := slow.take(20_000); err != nil { // it has begun
		t.Fatal(err)
	}
	behind := slow.next
	for w.end < 4*window {
		if !w.put(Stdout, 10_000) {
			t.Fatal("the slow cursor holds the writer back")
		}
		if _, err := fast.take(32 << 10); err != nil {
			t.Fatal(err)
		}
	}
	if !slow.c.Behind() || fast.c.Behind() {
		t.Errorf("behind: slow %v, fast %v", slow.c.Behind(), fast.c.Behind())
	}
	_, err := slow.take(32 << 10)
	cutOff := (*TooSlowError)(nil)
	if !errors.As(err, &cutOff) || cutOff.Offset != behind {
		t.Fatalf("slow cursor: %v, want it cut off at %d", err, behind)
	}
	slow.c.Close()
	again := w.attach(t, cutOff.Offset)
	if _, err := again.take(32 << 10); err != nil || again.next <= behind {
		t.Errorf("after attaching again: at %d, %v", again.next, err)
	}
	again.c.Close()
	fast.c.Close()
}

// A reader that was cut off and is stuck on its connection does not keep the
// other from reading the source itself, as one does that may read on.
func TestOutputAloneBesideOneCutOff(t *testing.T) {
	const window = 128 << 10
	w := newLog(window)
	pulled := 0
	w.o.pull = func(time.Duration) {
		pulled++
		if w.hasRoom() {
			t.Error("a pump reads as well")
		}
	}
	fast, slow := w.attach(t, 0), w.attach(t, 0)
	for pulled == 0 && w.end < 4*window {
		if !w.put(Stdout, 10_000) {
			t.Fatal("the slow cursor holds the writer back")
		}
		for range 2 { // the second time it has read everything
			if _, err := fast.take(32 << 10); err != nil {
				t.Fatal(err)
			}
		}
	}
	if pulled == 0 || !slow.c.Behind() {
		t.Fatalf("pulled %d times; the other is behind: %v", pulled, slow.c.Behind())
	}
	fast.c.Close()
	slow.c.Close()
}

// Who attaches in the past while output floods has the whole window's time to
// catch up.
func TestOutputAttachInThePastWhileFlooding(t *testing.T) {
	const window = 256 << 10
	w := newLog(window)
	fast := w.attach(t, 0)
	flood := func(n int64) {
		for end := w.end + n; w.end < end; {
			w.put(Stdout, 20_000)
			if _, err := fast.take(32 << 10); err != nil {
				t.Fatal(err)
			}
		}
	}
	flood(3 * window)
	late := w.attach(t, 0)
	flood(window * 3 / 10)
	for late.next < w.end {
		n, err := late.take(10_000)
		if err != nil {
			t.Fatalf("cut off at %d of %d", late.next, w.end)
		}
		if n > 100_000 { // it is the faster one
			flood(int64(n / 2))
		}
	}
	late.c.Close()
	fast.c.Close()
}

// Without readers the newest output is kept and writers never wait.
func TestOutputNewestIsKept(t *testing.T) {
	const window = 256 << 10
	w := newLog(window)
	for w.end < 10*window {
		if !w.put(Stdout, 30_000) {
			t.Fatal("a writer without readers waits")
		}
	}
	p := w.attach(t, 0)
	for p.next < w.end || p.fresh {
		if _, err := p.take(32 << 10); err != nil {
			t.Fatal(err)
		}
		if kept := w.end - w.o.start; kept > window || kept < window-blockSize {
			t.Fatalf("%d bytes kept, window %d", kept, window)
		}
	}
	p.c.Close()
}

// A gap is told before the cursor is cut off: the offset to go on from is
// behind it.
func TestOutputGapBeforeCutOff(t *testing.T) {
	const window = 128 << 10
	w := newLog(window)
	w.put(Stdout, 200)
	w.o.drop()
	w.o.window = window
	fast, late := w.attach(t, Now), w.attach(t, 0)
	for w.end < 4*window {
		w.put(Stdout, 20_000)
		if _, err := fast.take(32 << 10); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := late.take(32 << 10); err != nil || late.next != 200 {
		t.Errorf("first: at %d, %v; want the gap", late.next, err)
	}
	if _, err := late.take(32 << 10); err == nil {
		t.Error("not cut off")
	}
	late.c.Close()
	fast.c.Close()
}

// A log that was dropped still takes what descendants write.
func TestOutputAfterDrop(t *testing.T) {
	w := newLog(1 << 20)
	w.put(Stdout, 1000)
	w.o.finish(Exit{})
	w.o.drop()
	p := w.attach(t, 0)
	for range 10 {
		if !w.put(Stdout, 100) {
			t.Fatal("a late writer waits for a reader that is done")
		}
		if _, err := p.take(1000); err != nil {
			t.Fatal(err)
		}
	}
	p.c.Close()
}

func TestOutputAttachBeyondTheEnd(t *testing.T) {
	w := newLog(1 << 20)
	w.put(Stdout, 100)
	_, err := w.o.Attach(101)
	wantError(t, err, ErrBeyondEnd)
	p := w.attach(t, 100)
	w.put(Stderr, 5)
	if n, err := p.take(10); n != 5 || err != nil {
		t.Errorf("read %d, %v; want 5", n, err)
	}
	p.c.Close()
}

// The end comes after all output before it, again and again, and late output
// belongs to those who attach later.
func TestOutputEnd(t *testing.T) {
	w := newLog(1 << 20)
	p := w.attach(t, 0)
	w.put(Stdout, 100_000)
	w.o.finish(Exit{Wait: 3 << 8})
	w.put(Stderr, 10)
	for p.next < 100_000 {
		if p.ended {
			t.Fatal("ended early")
		}
		if _, err := p.take(30_000); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := p.take(10); n != 0 || err != nil || !p.ended {
		t.Errorf("read %d, %v, ended %v after the end", n, err, p.ended)
	}
	p.c.Close()
	late := w.attach(t, 0)
	for !late.ended {
		if _, err := late.take(30_000); err != nil {
			t.Fatal(err)
		}
	}
	if late.next != 100_010 {
		t.Errorf("a later cursor ended at %d, want 100010", late.next)
	}
	late.c.Close()
}

// The memory of a log of tiny chunks is bounded as well.
func TestOutputMemoryOfTinyChunks(t *testing.T) {
	const window = 256 << 10
	heap := func() int64 {
		runtime.GC()
		runtime.GC() // pools keep what they hold through one collection
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	o := newOutput(window, newBudget(1<<40))
	before := heap()
	for i := range window {
		o.append(Stream(1+i%2), []byte{'x'}, nil)
	}
	full := heap() - before
	if limit := int64(4 * window); full > limit {
		t.Errorf("%d bytes for a window of %d", full, window)
	}
	o.drop()
	empty := heap() - before
	if empty > 64<<10 {
		t.Errorf("%d bytes after the drop", empty)
	}
	t.Logf("%d KiB full, %d KiB empty", full>>10, empty>>10)
	runtime.KeepAlive(o)
}

// All logs together stay within the budget: ended ones go first, oldest first,
// then busy ones keep less.
func TestBudget(t *testing.T) {
	const total, window, logs = 4 << 20, 1 << 20, 12
	budget := newBudget(total)
	fill := func(w *writer) {
		for w.end < window {
			w.put(Stdout, 50_000)
		}
	}
	var ended []*writer
	for range logs {
		w := &writer{o: newOutput(window, budget)}
		fill(w)
		w.o.finish(Exit{})
		budget.retire(w.o)
		ended = append(ended, w)
		if used := budget.used.Load(); used > total {
			t.Fatalf("%d bytes kept, budget %d", used, total)
		}
	}
	for i, w := range ended {
		if kept := w.end > w.o.start; kept != (i >= logs-4) {
			t.Errorf("log %d of %d kept: %v", i, logs, kept)
		}
	}
	var busy []*writer
	for range logs {
		w := &writer{o: newOutput(window, budget)}
		fill(w)
		busy = append(busy, w)
	}
	if used := budget.used.Load(); used > total+logs*(keepLess+blockSize) {
		t.Errorf("%d bytes kept by busy logs, budget %d", used, total)
	}
	for _, w := range ended {
		if w.end > w.o.start {
			t.Error("an ended log is kept beside busy ones")
		}
	}
	for _, w := range append(busy, ended...) {
		budget.forget(w.o)
	}
	if used := budget.used.Load(); used != 0 {
		t.Errorf("%d bytes kept in the end", used)
	}
}

// What is to be seen of commands in a listing is within the budget as well: that
// of ended ones goes first, and that of running ones stays.
func TestBudgetOfLabels(t *testing.T) {
	const cost = 100 << 10
	cfg := DefaultConfig()
	cfg.Total = 5*cost + cost/2
	r := newRig(t, cfg, false)
	labelled := func(s *Spec, label int) *Spec {
		s.Label, s.LabelCost = label, cost
		return s
	}
	running, rd := r.start(labelled(withStdin(shell("read line")), -1))
	var ended []*Process
	for i := range 10 {
		p, rd := r.start(labelled(spec("true"), i))
		rd.all()
		rd.close()
		ended = append(ended, p)
		if used := r.table.budget.used.Load(); used > cfg.Total {
			t.Errorf("%d bytes kept, budget %d", used, cfg.Total)
		}
	}
	for i, p := range ended {
		eventually(t, "the oldest to go", func() bool {
			if i < 6 {
				return p.Label() == nil
			}
			return p.Label() == i
		})
		if p.Name != "true" || p.Exit() == nil {
			t.Errorf("what is left is %q, %v", p.Name, p.Exit())
		}
	}
	if running.Label() != -1 {
		t.Errorf("the running one has %v", running.Label())
	}
	must(t, running.CloseStdin())
	rd.all()
	rd.close()
	before := r.table.budget.used.Load()
	if _, _, err := r.table.Start(labelled(spec("no-such-command"), 0)); err == nil || r.table.budget.used.Load() != before {
		t.Errorf("%v; %d bytes kept of what did not start", err, r.table.budget.used.Load()-before)
	}
}

// A reader that was here a moment ago is not cut off by one whose connection
// swallows a window at once; one that stays away is. One for which there was
// nothing to read was not away.
func TestOutputSparesAReaderThatComesBack(t *testing.T) {
	for name, wait := range map[string]time.Duration{"takes": 0, "waits for output": 2 * spareTime} {
		t.Run(name, func(t *testing.T) { testSparing(t, wait) })
	}
}

// appendUpTo appends pieces until there are size bytes.
func appendUpTo(o *Output, size int64) {
	for o.Written() < size {
		o.append(Stdout, make([]byte, 32<<10), nil)
	}
}

// takeUpTo has a reader take everything before offset.
func takeUpTo(t *testing.T, c *Cursor, offset int64) {
	t.Helper()
	for at := int64(0); at < offset; {
		b, err := c.Take(1 << 20)
		must(t, err)
		for _, chunk := range b.Chunks {
			at = chunk.Offset + int64(len(chunk.Data))
		}
	}
}

func testSparing(t *testing.T, wait time.Duration) {
	const window = 512 << 10
	o := newOutput(window, newBudget(window*8))
	eager, err := o.Attach(0)
	must(t, err)
	defer eager.Close()
	late, err := o.Attach(0)
	must(t, err)
	defer late.Close()
	time.Sleep(wait)
	began := time.Now()
	idle := &pump{closed: true} // resuming it does nothing
	appendUpTo(o, window)
	takeUpTo(t, eager, window)
	if wait == 0 {
		began = time.Now()
		_, err = late.Take(1)
		must(t, err)
	}
	if !o.wait(idle) && time.Since(began) < spareTime {
		t.Error("the writer goes on and cuts off a reader that has not been slow")
	}
	eventually(t, "the writer to go on without the late reader", func() bool { return !o.wait(idle) })
	if waited := time.Since(began); waited < spareTime {
		t.Errorf("the writer waited for %v only", waited)
	}
}

// A reader that reads the source itself does not push out what it has not taken
// yet, which the pumps have read meanwhile for another one.
func TestPullCutsNobodyOff(t *testing.T) {
	const window = 512 << 10
	o := newOutput(window, newBudget(window*8))
	read, write, err := os.Pipe()
	must(t, err)
	defer read.Close()
	defer write.Close()
	source := &pump{stream: Stdout, fd: int(read.Fd()), out: o, bell: make(chan struct{}, 1)}
	must(t, unix.SetNonblock(source.fd, true))
	driver := o.attachFirst(nil)
	defer driver.Close()
	eager, err := o.Attach(0)
	must(t, err)
	defer eager.Close()
	appendUpTo(o, window)
	takeUpTo(t, eager, window)
	_, err = write.Write(make([]byte, 64<<10))
	must(t, err)
	source.pull()
	b, err := driver.Take(1 << 20)
	must(t, err)
	if len(b.Chunks) == 0 || b.Chunks[0].Offset != 0 {
		t.Errorf("%d chunks", len(b.Chunks))
	}
}

// Of two readers at one place, the one that takes first does not make the other
// slow, though there is more than the window.
func TestFirstToTakeCutsNobodyOff(t *testing.T) {
	const window = 512 << 10
	o := newOutput(window, newBudget(window*8))
	var both [2]*Cursor
	for i := range both {
		var err error
		both[i], err = o.Attach(0)
		must(t, err)
		defer both[i].Close()
	}
	appendUpTo(o, window+64<<10) // as a burst may
	for i, c := range both {
		if b, err := c.Take(1 << 20); err != nil || len(b.Chunks) == 0 || b.Chunks[0].Offset != 0 {
			t.Errorf("reader %d: %d chunks, %v", i, len(b.Chunks), err)
		}
	}
}

// A log waits for slower readers for a moment, and for a twentieth of the time.
func TestOutputWaitsLittle(t *testing.T) {
	const window = 512 << 10
	o := newOutput(window, newBudget(window*8))
	eager, err := o.Attach(0)
	must(t, err)
	defer eager.Close()
	slow, err := o.Attach(0)
	must(t, err)
	defer slow.Close()
	appendUpTo(o, window)
	takeUpTo(t, eager, window)
	now := time.Now()
	for _, step := range []struct {
		after time.Duration
		waits bool
	}{
		{0, true},
		{spareTime - 1, true}, // of one wait
		{1, false},
		{spareShare * spareTime / 5, false}, // 4 ms are regained: too little
		{spareShare * spareTime / 5, true},
		{spareTime / 5, true},
		{spareTime / 5, false},
	} {
		now = now.Add(step.after)
		o.mu.Lock()
		waits := o.sparing(now)
		o.mu.Unlock()
		if waits != step.waits {
			t.Errorf("waits %v after %v more, want %v", waits, step.after, step.waits)
		}
	}
}
