package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/cgroup"
	"github.com/wrenn/envd/internal/leaktest"
	"github.com/wrenn/envd/internal/reap"
)

const (
	// patience is how long an expected event may take on a busy machine.
	patience = 15 * time.Second
	// grace is what closing a rig's table gives the leaders.
	grace = 200 * time.Millisecond
)

// rig is a table with all that it needs, in one of the two modes.
type rig struct {
	t      testing.TB
	table  *Table
	reaper *reap.Reaper
	groups *cgroup.Hierarchy // nil: the fallback
}

// bothModes runs f with a hierarchy and without.
func bothModes(t *testing.T, f func(t *testing.T, r *rig)) {
	bothModesWith(t, DefaultConfig(), f)
}

func bothModesWith(t *testing.T, cfg Config, f func(t *testing.T, r *rig)) {
	t.Helper()
	for _, cgroups := range []bool{true, false} {
		name := "search"
		if cgroups {
			name = "cgroup"
		}
		t.Run(name, func(t *testing.T) { f(t, newRig(t, cfg, cgroups)) })
	}
}

// newRig makes a table, which is closed with the test. Nothing is left then.
func newRig(t testing.TB, cfg Config, cgroups bool) *rig {
	t.Helper()
	leaktest.Check(t)
	r := &rig{t: t}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	var err error
	r.reaper, err = reap.Open()
	must(t, err)
	t.Cleanup(func() { must(t, r.reaper.Close()) })
	wg.Go(func() { must(t, r.reaper.Run(ctx)) })
	t.Cleanup(func() { eventually(t, "the children to be reaped", func() bool { return children(t) == 0 }) })
	if cgroups {
		r.groups, err = cgroup.Open(cgroupRoot(t))
		must(t, err)
		wg.Go(func() { must(t, r.groups.Run(ctx)) })
		t.Cleanup(func() { must(t, r.groups.Close()) })
	}
	r.table, err = OpenTable(cfg, r.reaper, func() *cgroup.Hierarchy { return r.groups })
	must(t, err)
	t.Cleanup(r.close)
	return r
}

// close closes the table within a limit. It may be called twice.
func (r *rig) close() {
	r.t.Helper()
	if r.table == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	closed := make(chan struct{})
	go func(table *Table) {
		table.Close(ctx)
		close(closed)
	}(r.table)
	r.table = nil
	select {
	case <-closed:
	case <-time.After(patience):
		r.t.Fatal("the table does not close")
	}
}

var roots atomic.Int64

// cgroupRoot makes a group of the real hierarchy to be the root of one test.
func cgroupRoot(t testing.TB) string {
	t.Helper()
	for _, dir := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		dir = filepath.Join(dir, fmt.Sprintf("envd-process-test-%d-%d", os.Getpid(), roots.Add(1)))
		must(t, os.Mkdir(dir, 0o755))
		t.Cleanup(func() {
			if err := unix.Rmdir(dir); err != nil {
				t.Errorf("the hierarchy left something: %v", err)
			}
		})
		return dir
	}
	t.Fatal("no cgroup v2")
	return ""
}

// spec is a complete description of argv as root.
func spec(argv ...string) *Spec {
	return &Spec{
		Name: argv[0], Args: argv[1:], Dir: "/",
		Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/root", "TERM=xterm"},
	}
}

func shell(script string, args ...string) *Spec {
	return spec(append([]string{"/bin/bash", "-c", script, "bash"}, args...)...)
}

// helper is the test binary in another part.
func helper(t testing.TB, part string, args ...string) *Spec {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	s := spec(append([]string{exe}, args...)...)
	s.Env = append(s.Env, helperEnv+"="+part, promptExit)
	return s
}

func onTerminal(s *Spec) *Spec {
	s.Terminal = &Size{Cols: 80, Rows: 24}
	return s
}

func withStdin(s *Spec) *Spec {
	s.Stdin = true
	return s
}

// start runs s and reads its output from the beginning.
func (r *rig) start(s *Spec) (*Process, *reader) {
	r.t.Helper()
	p, c, err := r.table.Start(s)
	if err != nil {
		r.t.Fatalf("start %q: %v", s.Args, err)
	}
	return p, newReader(r.t, c)
}

// run runs s to its end and answers its output, all streams in one.
func (r *rig) run(s *Spec) (string, *Exit) {
	r.t.Helper()
	_, rd := r.start(s)
	defer rd.close()
	return rd.all()
}

func (r *rig) attach(p *Process, offset int64) *reader {
	r.t.Helper()
	c, err := p.Attach(offset)
	must(r.t, err)
	return newReader(r.t, c)
}

// reader reads one cursor and checks what every reader may rely on: offsets
// are contiguous but for announced gaps.
type reader struct {
	t    testing.TB
	c    *Cursor
	next int64
	gap  *Gap // the last one
	text strings.Builder
	by   [Terminal + 1]strings.Builder
	end  *Exit
}

func newReader(t testing.TB, c *Cursor) *reader { return &reader{t: t, c: c, next: -1} }

func (rd *reader) close() { rd.c.Close() }

// take reads once. It answers whether there was anything.
func (rd *reader) take() (bool, error) {
	rd.t.Helper()
	b, err := rd.c.Take(32 << 10)
	if err != nil {
		return false, err
	}
	if b.Gap != nil {
		if rd.next >= 0 && b.Gap.From != rd.next {
			rd.t.Errorf("gap from %d, want %d", b.Gap.From, rd.next)
		}
		rd.gap, rd.next = b.Gap, b.Gap.To
	}
	for _, c := range b.Chunks {
		if rd.next >= 0 && c.Offset != rd.next {
			rd.t.Errorf("chunk at %d, want %d", c.Offset, rd.next)
		}
		if len(c.Data) == 0 || len(c.Data) > 32<<10 {
			rd.t.Errorf("chunk of %d bytes", len(c.Data))
		}
		rd.next = c.Offset + int64(len(c.Data))
		rd.text.Write(c.Data)
		rd.by[c.Stream].Write(c.Data)
	}
	rd.end = b.End
	return !b.Empty(), nil
}

// rest takes while there is nothing, until the pumps read again.
func (rd *reader) rest() {
	rd.t.Helper()
	for range 2 { // the second one waits a moment
		if some, err := rd.take(); some || err != nil {
			rd.t.Fatalf("there is something to read, or %v", err)
		}
	}
}

// until reads until ok, which is asked after each batch.
func (rd *reader) until(what string, ok func() bool) {
	rd.t.Helper()
	limit := time.After(patience)
	for !ok() {
		select {
		case <-rd.c.Ready():
		case <-limit:
			rd.t.Fatalf("waited for %s; read %d bytes, end %v: %.200q", what, rd.text.Len(), rd.end, rd.text.String())
		}
		if _, err := rd.take(); err != nil {
			rd.t.Fatalf("waiting for %s: %v", what, err)
		}
	}
}

// expect reads until the output contains text.
func (rd *reader) expect(text string) {
	rd.t.Helper()
	rd.until(strconv.Quote(text), func() bool { return strings.Contains(rd.text.String(), text) })
}

// all reads to the end.
func (rd *reader) all() (string, *Exit) {
	rd.t.Helper()
	rd.until("the end", func() bool { return rd.end != nil })
	return rd.text.String(), rd.end
}

// number reads the line that begins with key and answers the rest.
func (rd *reader) number(key string) int {
	rd.t.Helper()
	find := func() (string, bool) {
		for line := range strings.Lines(rd.text.String()) {
			if v, ok := strings.CutPrefix(line, key+" "); ok && strings.HasSuffix(v, "\n") {
				return strings.TrimSpace(v), true
			}
		}
		return "", false
	}
	rd.until("line "+key, func() bool { _, ok := find(); return ok })
	v, _ := find()
	n, err := strconv.Atoi(v)
	must(rd.t, err)
	return n
}

func wantExit(t testing.TB, e *Exit, want string) {
	t.Helper()
	if e.String() != want {
		t.Errorf("ended with %q, want %q", e, want)
	}
}

// wait expects a channel to be closed.
func wait(t testing.TB, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("waited for %s", what)
	}
}

// eventually waits for something that has no event to wait for.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Errorf("waited for %s", what)
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// alive tells whether pid runs: neither gone nor a zombie.
func alive(pid int) bool {
	k, ok := readTask(pid)
	return ok && !k.zombie
}

// children counts our child processes, zombies included.
func children(t testing.TB) int {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	must(t, err)
	n := 0
	for _, list := range lists {
		b, _ := os.ReadFile(list) // the thread may be gone
		n += len(strings.Fields(string(b)))
	}
	return n
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
}

func atoi(t testing.TB, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	must(t, err)
	return n
}
