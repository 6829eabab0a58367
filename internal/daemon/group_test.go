package daemon

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/cgroup"
	"github.com/wrenn/envd/internal/leaktest"
)

// limit bounds what a test waits for.
const limit = 20 * time.Second

// journal notes what happens, in order.
type journal struct {
	mu    sync.Mutex
	lines []string // guarded by mu
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// TestGroupOrder checks that parts are closed in reverse, and that the run of
// each goes on until its own close is done.
func TestGroupOrder(t *testing.T) {
	leaktest.Check(t)
	var j journal
	var g group
	running := make(chan struct{}, 2)
	for _, name := range []string{"first", "second"} {
		g.add(name, func(ctx context.Context) error {
			running <- struct{}{}
			<-ctx.Done()
			j.add(name + " ran")
			return nil
		}, func(context.Context) error {
			j.add(name + " closes")
			return nil
		})
	}
	g.add("third", nil, func(context.Context) error { j.add("third closes"); return nil })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.run(ctx, quiet()) }()
	<-running
	<-running
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
	g.close() // again
	want := []string{"third closes", "second closes", "second ran", "first closes", "first ran"}
	if !slices.Equal(j.lines, want) {
		t.Errorf("got %q, expected %q", j.lines, want)
	}
}

// TestGroupPartEnds checks that one part's end ends all, with its error and
// those of closing.
func TestGroupPartEnds(t *testing.T) {
	leaktest.Check(t)
	broken, stuck := errors.New("broken"), errors.New("stuck")
	for _, cause := range []error{broken, nil} { // an end without an error is one too
		var g group
		closed := false
		g.add("lasting", func(ctx context.Context) error { <-ctx.Done(); return nil },
			func(context.Context) error { closed = true; return stuck })
		g.add("ending", func(context.Context) error { return cause }, nil)
		err := g.run(t.Context(), quiet())
		if !closed || !errors.Is(err, stuck) || cause != nil && !errors.Is(err, cause) || !strings.Contains(err.Error(), "ending ended") {
			t.Errorf("closed %v, %v", closed, err)
		}
	}
}

// TestGroupNeverRun checks that what was opened is closed when a later part
// does not open.
func TestGroupNeverRun(t *testing.T) {
	leaktest.Check(t)
	var j journal
	var g group
	for _, name := range []string{"first", "second"} {
		g.add(name, func(context.Context) error { j.add("ran"); return nil },
			func(context.Context) error { j.add(name); return nil })
	}
	g.close()
	if want := []string{"second", "first"}; !slices.Equal(j.lines, want) {
		t.Errorf("got %q, expected %q", j.lines, want)
	}
}

// TestGroupBudget checks that a part is given a limited time to close.
func TestGroupBudget(t *testing.T) {
	leaktest.Check(t)
	var g group
	g.add("slow", nil, func(ctx context.Context) error {
		deadline, ok := ctx.Deadline()
		if left := time.Until(deadline); !ok || left <= 0 || left > partGrace {
			t.Errorf("deadline %v, %v", left, ok)
		}
		<-ctx.Done()
		return ctx.Err()
	})
	began := time.Now()
	g.close()
	if took := time.Since(began); took < partGrace-time.Second || took > limit {
		t.Errorf("close took %v", took)
	}
	if len(g.errs) != 1 || !errors.Is(g.errs[0], context.DeadlineExceeded) {
		t.Errorf("errors %v", g.errs)
	}
}

// TestGroupStartsInSteps checks that parts can be started by name and the rest
// later, and that what never ran is closed as well.
func TestGroupStartsInSteps(t *testing.T) {
	leaktest.Check(t)
	for _, rest := range []bool{true, false} {
		var j journal
		var g group
		running := make(chan string, 2)
		for _, name := range []string{"first", "second"} {
			g.add(name, func(ctx context.Context) error {
				running <- name
				<-ctx.Done()
				j.add(name + " ran")
				return nil
			}, func(context.Context) error { j.add(name + " closes"); return nil })
		}
		g.start(t.Context(), "second")
		if name := <-running; name != "second" {
			t.Errorf("%s runs", name)
		}
		want := []string{"second closes", "second ran", "first closes"}
		if rest {
			g.start(t.Context())
			if name := <-running; name != "first" {
				t.Errorf("%s runs", name)
			}
			want = append(want, "first ran")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.wait(ctx, quiet()); err != nil {
			t.Error(err)
		}
		if !slices.Equal(j.lines, want) {
			t.Errorf("rest %v: %q, want %q", rest, j.lines, want)
		}
	}
}

// TestGroundHurries checks that a command does not wait for the server's head
// start, and gets what was prepared.
func TestGroundHurries(t *testing.T) {
	leaktest.Check(t)
	g := newGround()
	got := make(chan *cgroup.Hierarchy, 1)
	go func() { got <- g.hierarchy() }()
	<-g.wanted
	g.await()
	g.prepare(t.TempDir(), quiet()) // no cgroup2
	if groups := <-got; groups != nil {
		t.Errorf("groups out of nowhere: %v", groups)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.run(ctx, false, quiet()); err != nil {
		t.Errorf("run: %v", err)
	}
	if err := g.close(); err != nil {
		t.Error(err)
	}
}
