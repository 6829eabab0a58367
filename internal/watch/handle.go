package watch

import (
	"time"

	"golang.org/x/sys/unix"
)

// pairWait bounds the wait for the second half of a rename, which the kernel
// queues some microseconds after the first. Past it the directory counts as
// moved away, and a half that is later still as one moved in.
const pairWait = 100 * time.Millisecond

// handle turns record i of the queue into events and keeps the tree.
func (w *Watcher) handle(i int) {
	r := w.queue[i]
	w.settle(r.pos)
	if r.is(unix.IN_Q_OVERFLOW) {
		w.fail(ErrOverflow)
		return
	}
	if _, old := w.retired[r.wd]; old {
		if r.is(unix.IN_IGNORED) {
			delete(w.retired, r.wd)
		}
		return
	}
	if r.wd == w.above {
		if r.isDir() && r.name == w.root.name && r.is(unix.IN_DELETE|unix.IN_MOVED_TO) {
			w.lostRoot()
		}
		return
	}
	n := w.byWd[r.wd]
	if n == nil {
		return
	}
	if r.is(unix.IN_IGNORED | unix.IN_MOVE_SELF) {
		switch {
		case n == w.root:
			w.lostRoot()
		case r.is(unix.IN_IGNORED):
			w.ended(n)
		}
		return
	}
	if r.name == "" {
		// What a directory says of itself, its parent says with a name.
		if n == w.root && r.is(unix.IN_ATTRIB) {
			w.out = append(w.out, Event{Kind: Chmod, Name: "."})
		}
		return
	}
	w.change(i, n)
}

// lostRoot ends the watch with its last event.
func (w *Watcher) lostRoot() {
	if w.err == nil {
		w.out = append(w.out, Event{Kind: Remove, Name: "."})
		w.fail(ErrRootRemoved)
	}
}

// ended forgets a directory whose watch the kernel has ended.
func (w *Watcher) ended(n *node) {
	n.unlink()
	w.bury(n)
	for _, c := range n.children {
		w.drop(c)
	}
	if n.shadow != nil {
		w.drop(n.shadow)
	}
	w.pathOf = nil
}

// settle ends what belongs to fences up to pos.
func (w *Watcher) settle(pos int64) {
	for len(w.settling) > 0 && w.settling[0].settled(pos) {
		w.settling[0].found = nil
		w.settling = w.settling[1:]
	}
	if len(w.settling) == 0 {
		w.settling = nil
	}
	for len(w.hints) > 0 && pos >= w.hints[0].since {
		h := w.hints[0]
		w.hints = w.hints[1:]
		if h.moved.hint == h {
			h.moved.hint = nil
			w.announce(h.slot, h.announce && !h.dir.dead, false)
		}
	}
}

// change handles an event about an entry of n.
func (w *Watcher) change(i int, n *node) {
	r := w.queue[i]
	s := slot{dir: n, name: r.name}
	switch {
	case r.is(unix.IN_MODIFY):
		w.emit(Write, n, r.name, "")
	case r.is(unix.IN_ATTRIB):
		w.emit(Chmod, n, r.name, "")
	case r.is(unix.IN_CREATE):
		w.created(r, s, "")
	case r.is(unix.IN_MOVED_TO):
		w.created(r, s, w.renames.take(r.cookie))
	case r.is(unix.IN_DELETE):
		delete(n.found, r.name)
		w.emit(Remove, n, r.name, "")
		w.vacate(r, s)
	case r.is(unix.IN_MOVED_FROM):
		delete(n.found, r.name)
		if w.opts.Recursive && r.isDir() {
			w.movedDir(i, s)
			break
		}
		old := w.name(n, r.name)
		w.emit(Rename, n, r.name, "")
		w.renames.put(r.cookie, old)
	}
	if r.isDir() && len(w.retry) > 0 {
		w.tryAgain()
	}
}

// created handles an entry that came to a name, but for directories whose
// rename was seen from its start.
func (w *Watcher) created(r record, s slot, from string) {
	if _, listed := s.dir.found[s.name]; listed {
		delete(s.dir.found, s.name)
		return
	}
	w.vacate(r, s)
	w.emit(Create, s.dir, s.name, from)
	if w.opts.Recursive && r.isDir() {
		w.follow(s)
	}
}

// vacate forgets what was known of a name when an event says that it is
// something else now. What a later list found there comes again with its own
// event.
func (w *Watcher) vacate(r record, s slot) {
	if !r.isDir() {
		return
	}
	w.supersede(s)
	if k := s.dir.children[s.name]; k != nil {
		w.drop(k)
	}
}

// supersede drops the hints and retries about a name: its own events tell more.
func (w *Watcher) supersede(s slot) {
	for _, h := range w.hints {
		if h.slot == s && h.moved.hint == h {
			h.moved.hint = nil
		}
	}
	for i := len(w.retry) - 1; i >= 0; i-- {
		if w.retry[i].slot == s {
			w.retry = append(w.retry[:i], w.retry[i+1:]...)
		}
	}
}

// movedDir handles the first half of a directory's rename together with the
// second one, so that the tree never has a directory in between.
func (w *Watcher) movedDir(i int, from slot) {
	r := w.queue[i]
	w.supersede(from)
	k := from.dir.children[from.name]
	old := w.name(from.dir, from.name)
	w.emit(Rename, from.dir, from.name, "")
	if k == nil {
		return // the second half, if any, is a directory to be found
	}
	if !k.settled(r.pos) {
		// Most likely not the one that was moved, but its successor.
		if j := w.secondHalf(i, r.cookie); j >= 0 && k.hint != nil && k.hint.slot == w.target(j) {
			k.hint = nil
		}
		w.drop(k)
		return
	}
	j, moved := w.pair(i, k)
	if moved == k && k.shadow != nil {
		w.drop(k.shadow)
		k.shadow = nil
	}
	var to slot
	switch {
	case j >= 0:
		to = w.target(j)
	case moved.hint != nil:
		to = moved.hint.slot
	}
	if to.dir == nil || to.dir.dead || to.dir.below(moved) {
		w.drop(moved)
		return
	}
	if j >= 0 {
		w.queue[j].mask = 0
	}
	delete(to.dir.found, to.name)
	w.supersede(to)
	w.move(moved, to, r.pos)
	w.emit(Create, to.dir, to.name, old)
}

// target is the name that record j is about; no directory if it is unknown.
func (w *Watcher) target(j int) slot {
	if _, old := w.retired[w.queue[j].wd]; old {
		return slot{}
	}
	return slot{dir: w.byWd[w.queue[j].wd], name: w.queue[j].name}
}

// move gives n another name. What has the name now is older, and kept aside in
// case of an exchange, or was found by a later list, and comes again.
func (w *Watcher) move(n *node, to slot, pos int64) {
	w.pathOf = nil
	n.unlink()
	if k := to.dir.children[to.name]; k != nil && k != n {
		if k.settled(pos) {
			n.shadow = k
		} else {
			w.drop(k)
		}
	}
	n.link(to.dir, to.name)
}

// secondHalf finds the other half of a rename among the records after i, -1
// when it is not there.
func (w *Watcher) secondHalf(i int, cookie uint32) int {
	for j := i + 1; j < len(w.queue); j++ {
		if w.queue[j].cookie == cookie && w.queue[j].is(unix.IN_MOVED_TO) {
			return j
		}
	}
	return -1
}

// pair finds the second half of the rename that starts at record i, -1 for a
// move out of the watch, and the directory moved: k, or the one that k was moved
// over, in an exchange. The kernel queues both halves and then IN_MOVE_SELF of
// the directory, with events of other processes between them (fs/notify:
// fsnotify_move), so the search reads on if it must.
func (w *Watcher) pair(i int, k *node) (int, *node) {
	cookie := w.queue[i].cookie
	second := -1
	deadline := time.Now().Add(pairWait)
	for j := i + 1; ; j++ {
		if j == len(w.queue) && !w.fillBefore(deadline) {
			return second, k
		}
		switch r := &w.queue[j]; {
		case r.is(unix.IN_Q_OVERFLOW):
			return second, k
		case r.is(unix.IN_MOVED_TO) && r.cookie == cookie:
			second = j
			if k.shadow == nil {
				return second, k
			}
		case r.is(unix.IN_MOVE_SELF|unix.IN_IGNORED) && r.wd == k.wd:
			return second, k
		case r.is(unix.IN_MOVE_SELF) && k.shadow != nil && r.wd == k.shadow.wd:
			return second, k.shadow
		}
	}
}

// fillBefore waits for more records. It runs when a rename was cut in two by the
// read, for the time the kernel takes to queue the rest.
func (w *Watcher) fillBefore(deadline time.Time) bool {
	before := len(w.queue)
	for w.err == nil {
		if w.fill() && len(w.queue) > before {
			return true
		}
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		poll := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}} // a descriptor
		// An error, EINTR for one, is as good as a timeout: the loop looks at the clock.
		_, _ = unix.Poll(poll, int(left.Milliseconds())+1)
	}
	return false
}

// renameRing remembers the old names of recent renames by their cookies. The
// second half of a rename follows at once or never.
type renameRing struct {
	halves [4]struct {
		old    string
		cookie uint32
	}
	next int
}

func (q *renameRing) put(cookie uint32, old string) {
	q.halves[q.next].cookie, q.halves[q.next].old = cookie, old
	q.next = (q.next + 1) % len(q.halves)
}

// take returns the old name, empty when it is not known, and forgets it.
func (q *renameRing) take(cookie uint32) string {
	for i := range q.halves {
		if h := &q.halves[i]; h.cookie == cookie && h.old != "" {
			old := h.old
			h.old = ""
			return old
		}
	}
	return ""
}
