package watch

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRecursiveExistingTree(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "a/b/c")
	w := watchDir(t, dir, true)
	write(t, dir+"/a/b/c/f", "x")
	must(t, os.Chmod(dir+"/a/b", 0o700))
	w.want("CREATE a/b/c/f", "WRITE a/b/c/f", "CHMOD a/b")
}

func TestRecursiveDeepTreeAtOnce(t *testing.T) {
	for range 50 {
		dir := t.TempDir()
		w := watchDir(t, dir, true)
		mkdir(t, dir, "a/b/c")
		write(t, dir+"/a/b/c/f", "")
		w.want("CREATE a", "CREATE a/b", "CREATE a/b/c", "CREATE a/b/c/f")
		write(t, dir+"/a/b/c/g", "")
		w.want("CREATE a/b/c/g")
		checkTree(t, w)
	}
}

// TestRecursiveEachCreateOnce reads while a tree grows: lists and events overlap
// at every point, and still nothing is reported twice or not at all.
func TestRecursiveEachCreateOnce(t *testing.T) {
	dir := t.TempDir()
	w := watchDir(t, dir, true)
	want := make(map[string]bool)
	for i := range 40 {
		for j := range 10 {
			p := fmt.Sprintf("d%d/e%d", i, j)
			want[strings.SplitN(p, "/", 2)[0]], want[p], want[p+"/f"], want[p+"/g"] = true, true, true, true
		}
	}
	ready := make(chan struct{})
	go func() {
		defer close(ready)
		for i := range 40 {
			for j := range 10 {
				p := fmt.Sprintf("%s/d%d/e%d", dir, i, j)
				mkdir(t, p)
				write(t, p+"/f", "")
				write(t, p+"/g", "")
			}
		}
	}()
	got := make(map[string]int)
	for len(got) < len(want) {
		e, err := w.next()
		must(t, err)
		if got[e.Name]++; e.Kind != Create || !want[e.Name] || got[e.Name] > 1 {
			t.Errorf("event %v, seen %d times", e, got[e.Name])
		}
	}
	<-ready
	w.want()
	checkTree(t, w)
}

func TestRecursiveMoves(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	mkdir(t, dir, "a/b")
	mkdir(t, dir, "z")
	mkdir(t, outside, "in/deep")
	write(t, outside+"/in/deep/f", "")
	w := watchDir(t, dir, true)

	// Within the tree: the new path, and what is below is not repeated.
	rename(t, dir+"/a", dir+"/z/a")
	write(t, dir+"/z/a/b/f", "")
	w.want("RENAME a", "CREATE z/a < a", "CREATE z/a/b/f")

	// Out: silence.
	rename(t, dir+"/z/a", outside+"/a")
	write(t, outside+"/a/b/g", "")
	w.want("RENAME z/a")
	remove(t, outside, "a/b/g")
	w.want()

	// In: everything below.
	rename(t, outside+"/in", dir+"/in")
	w.want("CREATE in", "CREATE in/deep", "CREATE in/deep/f")
	write(t, dir+"/in/deep/f", "x")
	w.want("WRITE in/deep/f")

	// Out and back: the inodes that were watched before.
	rename(t, outside+"/a", dir+"/a")
	w.want("CREATE a", "CREATE a/b", "CREATE a/b/f")
	checkTree(t, w)
}

// Giving back the watches of a large tree queues an event for each.
func TestRecursiveLargeTreeMovedOut(t *testing.T) {
	base := t.TempDir()
	must(t, unix.Mount("none", base, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(base, unix.MNT_DETACH)) })
	for i := range sysctl("fs.inotify.max_queued_events") + 1000 {
		mkdir(t, fmt.Sprintf("%s/tree/a/%d/%d", base, i/1000, i))
	}
	w := watchDir(t, base+"/tree", true)
	rename(t, base+"/tree/a", base+"/a")
	w.want("RENAME a")
	w.want()
	if len(w.byWd) != 1 || len(w.retired) > 0 {
		t.Errorf("%d directories watched, %d watches given back", len(w.byWd), len(w.retired))
	}
}

func TestRecursiveReplaced(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "x/below")
	mkdir(t, dir, "y")
	w := watchDir(t, dir, true)

	// Removed and made again before anything is read.
	must(t, os.RemoveAll(dir+"/x"))
	mkdir(t, dir, "x/below")
	w.want("REMOVE x/below", "REMOVE x", "CREATE x", "CREATE x/below")
	write(t, dir+"/x/below/f", "")
	w.want("CREATE x/below/f")

	// Moved over an empty directory.
	rename(t, dir+"/x", dir+"/y")
	must(t, os.Chmod(dir+"/y/below/f", 0o600))
	w.want("RENAME x", "CREATE y < x", "CHMOD y/below/f")
	checkTree(t, w)

	// A file in place of a directory.
	must(t, os.RemoveAll(dir+"/y"))
	write(t, dir+"/y", "")
	w.want("REMOVE y/below/f", "REMOVE y/below", "REMOVE y", "CREATE y")
	checkTree(t, w)
}

// Chains of renames that were all made before the first is read.
func TestRecursiveMovedOnBeforeRead(t *testing.T) {
	dir := t.TempDir()
	w := watchDir(t, dir, true)
	mkdir(t, dir, "a/b")
	rename(t, dir+"/a", dir+"/c")
	rename(t, dir+"/c", dir+"/d")
	mkdir(t, dir, "a")
	rename(t, dir+"/d", dir+"/a/e")
	got := w.until()
	m := newModel()
	for _, line := range got {
		m.apply(parseText(line))
	}
	compare(t, m.paths(), treePaths(t, dir))
	checkTree(t, w)
	write(t, dir+"/a/e/b/f", "")
	w.want("CREATE a/e/b/f")
}

func parseText(line string) Event {
	kind, name, _ := strings.Cut(line, " ")
	name, from, _ := strings.Cut(name, " < ")
	for k := Create; k <= Chmod; k++ {
		if k.String() == kind {
			return Event{Kind: k, Name: name, From: from}
		}
	}
	panic(line)
}

// A known directory is moved into one that is not watched yet.
func TestRecursiveMovedIntoNewDirectory(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "old/below")
	write(t, dir+"/old/below/f", "")
	w := watchDir(t, dir, true)
	mkdir(t, dir, "new")
	rename(t, dir+"/old", dir+"/new/old")
	// Nothing of it is reported twice: it keeps its watches.
	w.want("CREATE new", "RENAME old", "CREATE new/old < old")
	write(t, dir+"/new/old/below/g", "")
	w.want("CREATE new/old/below/g")
	checkTree(t, w)

	// By way of another name.
	mkdir(t, dir, "newer")
	rename(t, dir+"/new/old", dir+"/between")
	rename(t, dir+"/between", dir+"/newer/old")
	w.want("CREATE newer", "RENAME new/old", "CREATE between < new/old", "RENAME between", "CREATE newer/old < between")
	write(t, dir+"/newer/old/below/h", "")
	w.want("CREATE newer/old/below/h")
	checkTree(t, w)
}

func TestRecursiveExchange(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "a/ina")
	mkdir(t, dir, "b/inb")
	w := watchDir(t, dir, true)
	must(t, unix.Renameat2(unix.AT_FDCWD, dir+"/a", unix.AT_FDCWD, dir+"/b", unix.RENAME_EXCHANGE))
	w.want("RENAME a", "CREATE b < a", "RENAME b", "CREATE a < b")
	write(t, dir+"/a/inb/f", "")
	write(t, dir+"/b/ina/f", "")
	w.want("CREATE a/inb/f", "CREATE b/ina/f")
	checkTree(t, w)
}

func TestRecursiveSymlinksAreNotFollowed(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	must(t, os.Symlink(outside, dir+"/before"))
	w := watchDir(t, dir, true)
	must(t, os.Symlink(outside, dir+"/after"))
	mkdir(t, dir, "d")
	must(t, os.Symlink(outside, dir+"/d/inside"))
	w.until()
	write(t, outside+"/f", "")
	mkdir(t, outside, "sub")
	w.want()
}

// Paths longer than PATH_MAX can exist and are watched.
func TestRecursiveVeryDeep(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	name := strings.Repeat("n", 200)
	w := watchDir(t, dir, true)
	at, path := root, ""
	for range 30 {
		must(t, at.Mkdir(name, 0o755))
		next, err := at.OpenRoot(name)
		must(t, err)
		defer next.Close()
		at, path = next, join(path, name)
	}
	w.until()
	must(t, at.Mkdir("last", 0o755))
	w.want("CREATE " + path + "/last")
	must(t, at.WriteFile("last/f", nil, 0o644))
	w.want("CREATE " + path + "/last/f")
	must(t, root.RemoveAll(name))
}

// A watch descriptor that the kernel gives out again is told from its first use
// by IN_IGNORED.
func TestWatchDescriptorReuse(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "a")
	w := watchDir(t, dir, true)
	n := w.root.children["a"]
	w.retired = map[int32]struct{}{n.wd: {}}
	w.queue = []record{
		{wd: n.wd, mask: unix.IN_CREATE, name: "old"},
		{wd: n.wd, mask: unix.IN_IGNORED},
		{wd: n.wd, mask: unix.IN_CREATE, name: "new"},
	}
	for i := range w.queue {
		w.handle(i)
	}
	w.queue = nil
	w.want("CREATE a/new")
}

// step handles the queue one read at a time, with changes between records: act
// is called before each record is handled.
func (w *watcher) step(act func(r record)) {
	w.t.Helper()
	must(w.t, w.conn.Control(func(fd uintptr) {
		w.fd = int(fd)
		w.fill()
		for i := 0; i < len(w.queue) && w.err == nil; i++ {
			act(w.queue[i])
			w.handle(i)
		}
		w.queue = nil
		w.settle(w.read)
	}))
}

// rebuilt checks that the events so far lead to the tree there is.
func (w *watcher) rebuilt(m *model) {
	w.t.Helper()
	for _, line := range w.until() {
		m.apply(parseText(line))
	}
	if got, want := m.paths(), treePaths(w.t, w.dir); !slices.Equal(got, want) {
		w.t.Errorf("events lead to %q, the tree is %q", got, want)
	}
}

// A directory found by one list is found by the next one at another place, and
// of its move only the first half is queued.
func TestFoundTwiceWhileListing(t *testing.T) {
	dir := t.TempDir()
	w := watchDir(t, dir, true)
	mkdir(t, dir, "a/m/below")
	mkdir(t, dir, "n")
	w.step(func(r record) {
		if r.name == "n" {
			// m is known at a/m, and n is not watched yet.
			rename(t, dir+"/a/m", dir+"/n/m")
		}
	})
	m := newModel()
	w.rebuilt(m)
	write(t, dir+"/n/m/below/f", "")
	w.want("CREATE n/m/below/f")
	checkTree(t, w)
}

// As before, but both places are found by one list: whether the queued move is
// of this directory or of one before it cannot be told, so it is found anew.
func TestFoundTwiceByOneList(t *testing.T) {
	dir := t.TempDir()
	w := watchDir(t, dir, true)
	mkdir(t, dir, "a/m/below")
	mkdir(t, dir, "n")
	must(t, w.conn.Control(func(fd uintptr) {
		w.fd = int(fd)
		w.fill()
		w.queue = nil
		at, err := new(Options).openLong(unix.AT_FDCWD, dir, unix.O_PATH)
		must(t, err)
		defer unix.Close(at)
		w.scan(func() {
			w.enter(at, slot{w.root, "a"}, true, false)
			rename(t, dir+"/a/m", dir+"/n/m")
			w.enter(at, slot{w.root, "n"}, true, false)
		})
	}))
	m := newModel()
	w.rebuilt(m)
	write(t, dir+"/n/m/below/f", "")
	w.want("CREATE n/m/below/f")
	checkTree(t, w)
}

// The parent of a new directory is renamed before the new one is reached, and
// another directory has the parent's name by then.
func TestParentReplacedBeforeReached(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "p")
	w := watchDir(t, dir, true)
	m := newModel()
	m.apply(Event{Kind: Create, Name: "p"})
	mkdir(t, dir, "p/new")
	w.step(func(record) {
		rename(t, dir+"/p", dir+"/q")
		mkdir(t, dir, "p/new/decoy")
	})
	w.rebuilt(m)
	write(t, dir+"/q/new/f", "")
	write(t, dir+"/p/new/decoy/f", "")
	w.want("CREATE q/new/f", "CREATE p/new/decoy/f")
	checkTree(t, w)
}

// A rename is cut in two by a read: the second half is waited for.
func TestRenamePairSeparated(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "a/below")
	mkdir(t, dir, "z")
	w := watchDir(t, dir, true)
	rename(t, dir+"/a", dir+"/z/b")
	must(t, w.conn.Control(func(fd uintptr) {
		w.fd = int(fd)
		w.fill()
		all := w.queue
		// What other processes do lies between the halves.
		second := slices.IndexFunc(all, func(r record) bool { return r.is(unix.IN_MOVED_TO) })
		between := record{wd: w.root.wd, mask: unix.IN_CREATE, name: "other", pos: all[second].pos}
		w.queue = slices.Insert(all, second, between)
		for i := range w.queue {
			w.handle(i)
		}
		w.queue = nil
	}))
	w.want("RENAME a", "CREATE z/b < a", "CREATE other")
	checkTree(t, w)

	// The read ends after the first half.
	rename(t, dir+"/z/b", dir+"/a")
	must(t, w.conn.Control(func(fd uintptr) {
		w.fd = int(fd)
		w.fill()
		rest := encode(w.queue[1:])
		w.queue = w.queue[:1]
		// The rest comes from a second descriptor, a pipe, in its place.
		var p [2]int
		must(t, unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC))
		defer unix.Close(p[0])
		defer unix.Close(p[1])
		w.fd = p[0]
		go func() { _, _ = unix.Write(p[1], rest) }()
		w.handle(0)
		w.fd = int(fd)
		for i := 1; i < len(w.queue); i++ {
			w.handle(i)
		}
		w.queue = nil
	}))
	w.want("RENAME z/b", "CREATE a < z/b")
	checkTree(t, w)
}

// The second half never comes: the directory has left the tree.
func TestRenamePairNeverCompleted(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "a/below")
	w := watchDir(t, dir, true)
	must(t, w.conn.Control(func(fd uintptr) {
		w.fd = int(fd)
		w.queue = []record{{wd: w.root.wd, mask: unix.IN_MOVED_FROM | unix.IN_ISDIR, cookie: 5, name: "a"}}
		w.handle(0)
		w.queue = nil
	}))
	w.want("RENAME a")
	if len(w.byWd) != 1 {
		t.Errorf("%d directories watched, want the root", len(w.byWd))
	}
}
