package watch

import (
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// scan runs f, which watches and lists directories, and sets the fence of all
// it found: the end of the queue as it is then.
func (w *Watcher) scan(f func()) {
	buf, _ := buffers.Get().(*[bufferSize]byte)
	w.entries = buf[:]
	f()
	w.entries = nil
	buffers.Put(buf)

	queued, err := linux.Buffered(uintptr(w.fd))
	w.fail(err)
	fence := w.read + int64(queued)
	for _, n := range w.fresh {
		n.since = fence
		if n.found != nil {
			w.settling = append(w.settling, n)
		}
	}
	w.fresh = nil
	for i := len(w.hints) - 1; i >= 0 && w.hints[i].since == math.MaxInt64; i-- {
		w.hints[i].since = fence
	}
}

// follow enters a directory that an event was about.
func (w *Watcher) follow(s slot) {
	if !w.reach(s, false) {
		w.retry = append(w.retry, retry{slot: s})
	}
}

// tryAgain enters the directories that could not be reached, after an event that
// may have changed their paths. It ends because reach adds none.
func (w *Watcher) tryAgain() {
	kept := w.retry[:0]
	for _, r := range w.retry {
		if !r.dir.dead && !w.reach(r.slot, r.announce) {
			kept = append(kept, r)
		}
	}
	clear(w.retry[len(kept):])
	w.retry = kept
}

// reach opens a directory through its parent and adopts it. It reports false
// when the parent is not where the events read so far have put it.
func (w *Watcher) reach(s slot, announce bool) bool {
	if w.err != nil {
		return true
	}
	at := w.openNode(s.dir)
	if at < 0 {
		return false
	}
	defer unix.Close(at)
	w.scan(func() { w.enter(at, s, announce, false) })
	return true
}

// openNode opens a known directory by its path, -1 when the path leads
// elsewhere. If even the root's does, then nothing made later can be found.
func (w *Watcher) openNode(n *node) int {
	fd, err := w.opts.openLong(unix.AT_FDCWD, join(w.where, n.path()), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err == nil {
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err == nil && st.Dev == n.dev && st.Ino == n.ino {
			return fd
		}
		_ = unix.Close(fd)
	}
	switch {
	case err != nil && !gone(err):
		w.fail(fmt.Errorf("open %s: %w", join(w.where, n.path()), err))
	case n == w.root:
		w.lostRoot()
	default:
		if fd := w.openNode(w.root); fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	return -1
}

// enter opens a directory below the descriptor at, which is s.dir, and adopts
// it. What is gone again, or never was a directory, is left to the events.
func (w *Watcher) enter(at int, s slot, announce, listing bool) {
	fd, err := w.opts.openAt(at, s.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	switch {
	case err == nil:
		w.adopt(fd, s, announce, listing)
		_ = unix.Close(fd)
	case gone(err):
	case refused(err):
		w.announce(s, announce, listing)
	default:
		w.fail(fmt.Errorf("open %s: %w", w.name(s.dir, s.name), err))
	}
}

// adopt watches the directory behind fd under a name and, in a recursive watch,
// lists it. With listing set, s.dir is being listed for the first time.
func (w *Watcher) adopt(fd int, s slot, announce, listing bool) {
	wd, err := linux.AddWatch(w.fd, fd, dirMask)
	if err != nil {
		if refused(err) && s.dir != nil {
			w.announce(s, announce, listing)
			return
		}
		w.fail(watchError(err))
		return
	}
	if wd == w.above {
		return // a bind mount that leads back out of the tree
	}
	if known := w.byWd[wd]; known != nil {
		// It was moved here, and the event of that is queued, unless s.dir was
		// not watched yet.
		if listing && (known.parent != s.dir || known.name != s.name) {
			known.hint = &hint{slot: s, moved: known, since: math.MaxInt64, announce: announce}
			w.hints = append(w.hints, known.hint)
		}
		return
	}
	w.announce(s, announce, listing)
	// After the watch was set, so that no subdirectory falls between the link
	// count and the events.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		w.fail(fmt.Errorf("fstat: %w", err))
		return
	}
	local := s.dir == nil || st.Dev == s.dir.dev
	if !local && !w.allowed(fd) {
		w.release(wd)
		return
	}
	n := &node{wd: wd, name: s.name, dev: st.Dev, ino: st.Ino}
	if s.dir == nil {
		w.root = n
	} else {
		n.link(s.dir, s.name)
	}
	w.byWd[wd] = n
	w.fresh = append(w.fresh, n)
	leaf := w.setup && w.leaves && st.Nlink == 2 && (w.root == n || st.Dev == w.root.dev)
	if w.opts.Recursive && !leaf {
		w.list(fd, n)
	}
}

// announce reports a directory, or any entry found by a list.
func (w *Watcher) announce(s slot, announce, listing bool) {
	if !announce {
		return
	}
	w.emit(Create, s.dir, s.name, "")
	if listing {
		if s.dir.found == nil {
			s.dir.found = make(map[string]struct{})
		}
		s.dir.found[s.name] = struct{}{}
	}
}

// list reads a new directory, reports what is in it and enters what is below.
func (w *Watcher) list(fd int, n *node) {
	var below []string
	for w.err == nil {
		size, err := linux.RetryInt(func() (int, error) { return unix.Getdents(fd, w.entries) })
		if err != nil {
			if !gone(err) {
				w.fail(fmt.Errorf("list %s: %w", n.path(), err))
			}
			break
		}
		if size == 0 {
			break
		}
		eachEntry(w.entries[:size], func(name []byte, kind byte) {
			if kind == unix.DT_UNKNOWN {
				kind = statKind(fd, string(name))
			}
			switch {
			case kind == unix.DT_DIR:
				below = append(below, string(name))
			case !w.setup:
				w.announce(slot{dir: n, name: string(name)}, true, true)
			}
		})
	}
	for _, name := range below {
		if w.err != nil {
			return
		}
		w.enter(fd, slot{dir: n, name: name}, !w.setup, true)
	}
}

// allowed reports whether a mount below the root may be followed.
func (w *Watcher) allowed(fd int) bool {
	if w.opts.AllowNetwork {
		return true
	}
	kind, err := filesystemOf(fd)
	return err == nil && !kind.network()
}

// drop forgets n and all below it, and gives their watches back. One that a
// list had seen elsewhere is looked for there.
func (w *Watcher) drop(n *node) {
	n.unlink()
	w.pathOf = nil
	w.release(n.wd)
	w.bury(n)
	if h := n.hint; h != nil {
		n.hint = nil
		w.retry = append(w.retry, retry{slot: h.slot, announce: true})
	}
	for _, c := range n.children {
		w.drop(c)
	}
	if n.shadow != nil {
		w.drop(n.shadow)
	}
}

// bury takes n out of the books.
func (w *Watcher) bury(n *node) {
	n.dead, n.found = true, nil
	delete(w.byWd, n.wd)
}

// releaseBatch is after how many watches given back the queue is read: each
// leaves IN_IGNORED in it, and a large tree moved away must not overflow it.
const releaseBatch = 1024

// release gives a watch back.
func (w *Watcher) release(wd int32) {
	// EINVAL: the kernel was first, and IN_IGNORED is queued already.
	if err := linux.RemoveWatch(w.fd, wd); err != nil && !errors.Is(err, unix.EINVAL) {
		w.fail(err)
	}
	if w.retired == nil {
		w.retired = make(map[int32]struct{})
	}
	w.retired[wd] = struct{}{}
	if len(w.retired)%releaseBatch == 0 && !w.setup {
		w.fill()
	}
}
