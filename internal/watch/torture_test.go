package watch

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// entry is a file or directory of a model, which does not tell them apart.
type entry map[string]entry

// model is a tree kept by its events alone.
type model struct {
	root  entry
	limbo map[string]entry // renamed away, by old name
}

func newModel() *model { return &model{root: entry{}, limbo: map[string]entry{}} }

// parent finds the entry that holds name, nil if the model has none.
func (m *model) parent(name string) (entry, string) {
	dir := m.root
	for {
		head, tail, more := strings.Cut(name, "/")
		if !more || dir == nil {
			return dir, name
		}
		dir, name = dir[head], tail
	}
}

func (m *model) apply(e Event) {
	dir, base := m.parent(e.Name)
	if dir == nil {
		return
	}
	switch e.Kind {
	case Create:
		dir[base] = entry{}
		if old, ok := m.limbo[e.From]; ok && e.From != "" {
			dir[base] = old
		}
		delete(m.limbo, e.From)
	case Rename:
		if old, ok := dir[base]; ok {
			m.limbo[e.Name] = old
		} else {
			delete(m.limbo, e.Name)
		}
		delete(dir, base)
	case Remove:
		delete(dir, base)
	}
}

func (m *model) paths() []string {
	var all []string
	var walk func(string, entry)
	walk = func(at string, e entry) {
		for name, below := range e {
			all = append(all, join(at, name))
			walk(join(at, name), below)
		}
	}
	walk("", m.root)
	slices.Sort(all)
	return all
}

// treePaths lists everything below dir, as the model does.
func treePaths(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir {
			all = append(all, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	}))
	slices.Sort(all)
	return all
}

// TestTorture has several processes change a tree of 1,000 directories at once
// and rebuilds the tree from the events. A prompt reader meets directories that
// are being filled; a late one, that reads when all processes wait, meets
// directories long since moved, replaced and removed. The operations are paced
// to the reader, so that no queue overflows.
func TestTorture(t *testing.T) {
	operations := 50_000
	if testing.Short() || raceEnabled {
		operations = 10_000
	}
	// On tmpfs for the number; the same 12,000 operations take 0.3 s there and
	// 6 s on ext4, which has its turn with fewer.
	fast := t.TempDir()
	must(t, unix.Mount("none", fast, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(fast, unix.MNT_DETACH)) })
	for _, late := range []bool{false, true} {
		name := map[bool]string{false: "prompt", true: "late"}[late]
		t.Run(name, func(t *testing.T) { torture(t, fast+"/"+name, operations*9/20, late) })
		t.Run(name+" on disk", func(t *testing.T) { torture(t, t.TempDir(), operations/20, late) })
	}
}

func torture(t *testing.T, base string, operations int, late bool) {
	const processes = 4
	dir, outside := base+"/tree", base+"/outside"
	mkdir(t, outside)
	for i := range 1000 {
		mkdir(t, dir, fmt.Sprintf("d%d/d%d/d%d", i/100, i/10%10, i%10))
	}
	w := watchDir(t, dir, true)
	m := newModel()
	for _, p := range treePaths(t, dir) {
		m.apply(Event{Kind: Create, Name: p})
	}
	p := &pace{w: w.Watcher, late: late, ready: make(chan bool), resume: make(chan struct{}), read: sync.NewCond(new(sync.Mutex))}
	began, events := time.Now(), 0
	var kinds [Chmod + 1]int
	apply := func() Event {
		e, err := w.next()
		must(t, err) // ErrOverflow too: the pace forbids it
		if len(w.rest) == 0 {
			p.read.L.Lock()
			p.read.Broadcast()
			p.read.L.Unlock()
		}
		m.apply(e)
		events++
		kinds[e.Kind]++
		return e
	}

	var group sync.WaitGroup
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	for i := range processes {
		group.Go(func() { p.shake(t, dir, outside, seed+int64(i), operations/processes) })
	}
	for left := processes; late && left > 0; {
		waiting := 0
		for range left {
			if <-p.ready {
				waiting++
			}
		}
		write(t, filepath.Join(dir, "lap"), "")
		remove(t, dir, "lap")
		for e := apply(); e.Name != "lap" || e.Kind != Remove; {
			e = apply()
		}
		left = waiting
		for range waiting {
			p.resume <- struct{}{}
		}
	}
	group.Go(func() {
		if !late {
			for range processes {
				for <-p.ready {
				}
			}
		}
		_ = os.WriteFile(filepath.Join(dir, "end"), nil, 0o644)
	})
	for apply().Name != "end" {
		continue
	}
	group.Wait()
	done := int(p.done.Load())
	t.Logf("%d operations, %d events %v in %v, %d directories watched, %d entries left",
		done, events, kinds[Create:], time.Since(began).Round(time.Millisecond), len(w.byWd), len(treePaths(t, dir)))
	if done < operations*9/10 {
		t.Errorf("only %d of %d operations succeeded", done, operations)
	}
	compare(t, m.paths(), treePaths(t, dir))
	checkTree(t, w)
}

func compare(t *testing.T, got, want []string) {
	t.Helper()
	if slices.Equal(got, want) {
		return
	}
	left := 10
	for _, p := range got {
		if _, ok := slices.BinarySearch(want, p); !ok && left > 0 {
			t.Errorf("model has %q, the tree does not", p)
			left--
		}
	}
	for _, p := range want {
		if _, ok := slices.BinarySearch(got, p); !ok && left > 0 {
			t.Errorf("tree has %q, the model does not", p)
			left--
		}
	}
}

// checkTree compares the watcher's own nodes with the directories there are: all
// are watched, and nothing else is kept.
func checkTree(t *testing.T, w *watcher) {
	t.Helper()
	w.until() // what the tree's own calls have queued
	dir := w.dir
	var got, want []string
	for _, n := range w.byWd {
		got = append(got, n.path())
		if n.found != nil || n.hint != nil || n.dead {
			t.Errorf("node %q: found %v, hint %v, dead %v", n.path(), n.found, n.hint, n.dead)
		}
	}
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d.IsDir() {
			want = append(want, strings.TrimPrefix(strings.TrimPrefix(path, dir), "/"))
		}
		return err
	}))
	slices.Sort(got)
	slices.Sort(want)
	compare(t, got, want)
	if len(w.retry) > 0 || len(w.hints) > 0 || len(w.settling) > 0 {
		t.Errorf("left over: %d retries, %d hints, %d settling", len(w.retry), len(w.hints), len(w.settling))
	}
}

// shakeBatch is how many operations a process makes before it waits for its
// pace. Those of all processes stay far below the kernel's 16,384 events.
const shakeBatch = 100

// pace holds the processes back.
type pace struct {
	w      *Watcher
	late   bool
	ready  chan bool     // one for each batch made, false at the end
	resume chan struct{} // late only: answers ready
	read   *sync.Cond    // told after each batch read
	done   atomic.Int64
}

// shake runs one process: it makes one batch for each byte it reads.
func (p *pace) shake(t *testing.T, dir, outside string, seed int64, operations int) {
	defer func() { p.ready <- false }()
	cmd := helper(t, "shake", dir, outside, strconv.FormatInt(seed, 10), strconv.Itoa(operations))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Error(err)
		return
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Error(err)
		return
	}
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		n, _ := strconv.Atoi(lines.Text())
		p.done.Add(int64(n))
		p.wait()
		if _, err := in.Write([]byte{1}); err != nil {
			break
		}
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func (p *pace) wait() {
	if p.late {
		p.ready <- true
		<-p.resume
		return
	}
	p.read.L.Lock()
	defer p.read.L.Unlock()
	for queuedBytes(p.w) > 64<<10 {
		// An event behind all the others, or a reader that finds nothing to
		// report in them would tell nobody.
		_ = os.WriteFile(p.w.where+"/pace", []byte("x"), 0o644)
		p.read.Wait()
	}
}

func queuedBytes(w *Watcher) (n int) {
	_ = w.conn.Control(func(fd uintptr) { n, _ = linux.Buffered(fd) })
	return n
}

// shakeMain makes random changes below a directory: arguments are the directory,
// one outside, a seed and the number of changes that must succeed.
func shakeMain(args []string) int {
	seed, _ := strconv.ParseInt(args[2], 10, 64)
	left, _ := strconv.Atoi(args[3])
	s := &shaker{dir: args[0], outside: args[1], r: rand.New(rand.NewPCG(uint64(seed), 1)), id: args[2]}
	for tries := 0; left > 0 && tries < 1000; tries++ {
		done := 0
		for range min(shakeBatch, left) {
			if s.step() == nil {
				done++
			}
		}
		left -= done
		fmt.Println(done)
		if n, err := io.ReadFull(os.Stdin, make([]byte, 1)); n == 0 || err != nil {
			return 0
		}
	}
	return 0
}

type shaker struct {
	dir, outside string
	id           string // to keep the processes' entries outside apart
	r            *rand.Rand
	serial       int
	out          []string // directories moved outside
}

func (s *shaker) path(depth int) string {
	p := s.dir
	for range depth {
		p += "/d" + strconv.Itoa(s.r.IntN(10))
	}
	return p
}

func (s *shaker) file() string {
	return s.path(s.r.IntN(4)) + "/f" + strconv.Itoa(s.r.IntN(4))
}

func (s *shaker) directory() string { return s.path(1 + s.r.IntN(4)) }

func (s *shaker) step() error {
	switch n := s.r.IntN(100); {
	case n < 25:
		return touch(s.file(), os.O_CREATE|os.O_EXCL)
	case n < 35:
		return touch(s.file(), 0)
	case n < 50:
		return os.Rename(s.file(), s.file())
	case n < 60:
		return os.Rename(s.directory(), s.directory())
	case n < 73:
		return os.MkdirAll(s.directory(), 0o755)
	case n < 80:
		return s.deep(s.directory())
	case n < 83:
		// A new directory that takes a known one in at once.
		p := s.path(1) + "/n" + strconv.Itoa(s.r.IntN(3))
		if err := os.Mkdir(p, 0o755); err != nil {
			return os.RemoveAll(p)
		}
		_ = os.Rename(s.directory(), p+"/x")
		_ = os.Rename(s.file(), p+"/y")
		return nil
	case n < 86:
		return s.moveOut()
	case n < 89:
		return s.moveIn()
	case n < 91:
		// Gone and back under the same name at once.
		p := s.directory()
		if err := os.Remove(p); err != nil {
			return err
		}
		return s.deep(p)
	case n < 97:
		return os.Remove(s.file())
	case n < 99:
		return os.Remove(s.directory())
	default:
		return os.RemoveAll(s.path(3))
	}
}

func (s *shaker) deep(p string) error {
	for range 1 + s.r.IntN(3) {
		if err := os.Mkdir(p, 0o755); err != nil {
			return err
		}
		if err := touch(p+"/f0", os.O_CREATE); err != nil {
			return err
		}
		p += "/d" + strconv.Itoa(s.r.IntN(10))
	}
	return nil
}

func (s *shaker) moveOut() error {
	s.serial++
	to := fmt.Sprintf("%s/%s-%d", s.outside, s.id, s.serial)
	if err := os.Rename(s.path(2+s.r.IntN(3)), to); err != nil {
		return err
	}
	s.out = append(s.out, to)
	return nil
}

func (s *shaker) moveIn() error {
	if len(s.out) == 0 {
		return fs.ErrNotExist
	}
	from := s.out[0]
	if err := os.Rename(from, s.directory()); err != nil {
		return err
	}
	s.out = s.out[1:]
	return nil
}

func touch(path string, flags int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|flags, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString("x")
	return errors.Join(err, f.Close())
}
