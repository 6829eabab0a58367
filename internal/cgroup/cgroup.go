// Package cgroup keeps a cgroup v2 hierarchy with a leaf group for each
// command.
//
// Below the managed root there is
//
//	wrenn/user/<pid>-<n>   one leaf per command without a terminal, <pid> being the daemon's
//	wrenn/pty/<pid>-<n>    one leaf per command with one
//	wrenn/system           the daemon itself, see Join
//	wrenn/socat            nothing: for hosts that read it
//
// The groups have weights and limits, so that commands neither starve the
// daemon nor take all memory or process numbers; see guard.
//
// A leaf exists before its command, which is cloned into it, so nothing a
// command starts is ever outside. It is removed when its last process is gone.
// In a burst of commands some are made ahead, while nobody waits.
// The leaf is what makes "kill the tree" exact, and it accounts for all that
// the command started.
//
// A Hierarchy is safe for concurrent use. It has one goroutine, Run, which
// waits for the kernel's word that a group has become empty, and a timer while
// groups that were released are to be removed. The package does not start
// processes and knows no commands.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// ErrUnusable means that the root is no cgroup v2 hierarchy that we can write.
var ErrUnusable = errors.New("cgroup v2 is not usable")

// ErrNoController means that a limit needs a controller that is not enabled.
var ErrNoController = errors.New("cgroup controller is not available")

// Class says under which group a command's leaf goes.
type Class string

// The classes are part of the wire contract: hosts read their groups.
const (
	PTY  Class = "pty"
	User Class = "user"
)

// Groups beside those of the classes, from the wire contract as well.
const (
	system = "system"
	socat  = "socat"
)

// top is the group that everything of ours is below.
const top = "wrenn"

// Controllers we use, where the kernel has them.
var wanted = []string{"cpu", "memory", "pids", "io"}

// Limits bound a group; 0 is no limit.
type Limits struct {
	MemoryBytes   uint64
	CPUMillicores uint32
	Pids          uint32
}

// Hierarchy owns the groups below root/wrenn.
type Hierarchy struct {
	root        string
	dir         string // root/wrenn
	controllers map[string]bool
	events      *os.File // inotify, on the cgroup.events of busy groups
	next        atomic.Uint64
	joined      atomic.Bool // the daemon is in wrenn/system
	origin      string      // where it was before; written once, before joined

	mu     sync.Mutex
	busy   map[int32]*Group   // guarded by mu; released groups with processes left, by watch
	spares map[Class][]*Group // guarded by mu; see spareGroups
	over   []*Group           // guarded by mu; released, for tidy; at most most
	closed bool               // guarded by mu; no spares any more, and no tidy
	tidied sync.WaitGroup     // calls of tidy that are due, or run

	most    int        // bounds over, and the spares of a class
	tidying sync.Mutex // held around what tidy does; before mu
}

// Open takes over root, a cgroup v2 mount or a delegated group of one. Leaves
// that an earlier daemon left behind empty are removed. Close releases it.
func Open(root string) (*Hierarchy, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return nil, fmt.Errorf("%w: statfs %s: %w", ErrUnusable, root, err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, fmt.Errorf("%w: %s is not a cgroup2 mount", ErrUnusable, root)
	}
	h := &Hierarchy{
		root:        root,
		dir:         filepath.Join(root, top),
		controllers: make(map[string]bool),
		busy:        make(map[int32]*Group),
		spares:      make(map[Class][]*Group),
		most:        min(spareGroups, linux.FileLimit()/64),
	}
	if err := h.makeGroups(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	if err := h.writable(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	removeEmpty(h.classDir(User))
	removeEmpty(h.classDir(PTY))
	h.vacate()
	h.enable()
	h.guard()
	fd, err := linux.OpenInotify()
	if err != nil {
		return nil, fmt.Errorf("watch cgroups: %w", err)
	}
	h.events = os.NewFile(uintptr(fd), "cgroup events")
	return h, nil
}

// makeGroups makes the hierarchy's own groups.
func (h *Hierarchy) makeGroups() error {
	for _, dir := range h.groups() {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	return nil
}

// writable tells whether leaves can be made: the groups may be those of a daemon
// with more rights, and every start would fail.
func (h *Hierarchy) writable() error {
	for _, dir := range []string{h.classDir(User), h.classDir(PTY)} {
		if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
			return fmt.Errorf("write to cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// groups are the directories of the hierarchy's own groups, parents first.
func (h *Hierarchy) groups() []string {
	return []string{h.dir, h.classDir(User), h.classDir(PTY), filepath.Join(h.dir, system), filepath.Join(h.dir, socat)}
}

// enable turns on, level by level, the controllers we use. What cannot be
// enabled is left out: limits of that kind are then refused.
func (h *Hierarchy) enable() {
	for _, c := range wanted {
		on := true
		for _, dir := range h.levels() {
			if err := writeFile(filepath.Join(dir, "cgroup.subtree_control"), "+"+c); err != nil {
				on = false
				break
			}
		}
		if on {
			h.controllers[c] = true
		}
	}
}

// levels are the groups that hand controllers on to those below, parents first.
func (h *Hierarchy) levels() []string {
	return []string{h.root, h.dir, h.classDir(User), h.classDir(PTY)}
}

// leafName names the n-th leaf of the daemon with that pid.
func leafName(pid int, n uint64) string { return fmt.Sprintf("%d-%d", pid, n) }

// abandoned tells whether a name is that of a leaf that no other daemon has: of
// our own, or of one that runs no more.
func abandoned(name string) bool {
	first, last, _ := strings.Cut(name, "-")
	pid, err := strconv.Atoi(first)
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(last, 10, 64)
	if err != nil || name != leafName(pid, n) {
		return false
	}
	return pid == os.Getpid() || errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

// removeEmpty removes the abandoned leaves below dir that hold no process.
func removeEmpty(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if abandoned(e.Name()) {
			leaf := filepath.Join(dir, e.Name())
			removeBelow(leaf)
			if unix.Rmdir(leaf) != nil {
				// A busy one stays, and runs: who froze it is gone.
				_ = (&Group{path: leaf}).write("cgroup.freeze", "0")
			}
		}
	}
}

func (h *Hierarchy) classDir(c Class) string { return filepath.Join(h.dir, string(c)) }

// Controllers lists those enabled for the leaves, for the log.
func (h *Hierarchy) Controllers() []string {
	var on []string
	for _, c := range wanted {
		if h.controllers[c] {
			on = append(on, c)
		}
	}
	return on
}

// Create makes a leaf with the given limits. The caller ends it with Release.
func (h *Hierarchy) Create(class Class, limits Limits) (*Group, error) {
	g := h.takeSpare(class)
	if g == nil {
		var err error
		if g, err = h.make(class); err != nil {
			return nil, err
		}
	}
	if err := h.limit(g, limits); err != nil {
		g.Discard()
		return nil, fmt.Errorf("set up cgroup %s: %w", g.path, err)
	}
	return g, nil
}

// make makes a leaf.
func (h *Hierarchy) make(class Class) (*Group, error) {
	g := &Group{h: h, class: class}
	for made := false; !made; {
		g.path = filepath.Join(h.classDir(class), leafName(os.Getpid(), h.next.Add(1)))
		err := unix.Mkdir(g.path, 0o755)
		if errors.Is(err, unix.ENOENT) {
			// Somebody removed our empty groups, such as another daemon that
			// shared the root.
			err = errors.Join(h.makeGroups(), unix.Mkdir(g.path, 0o755))
		}
		// EEXIST: an earlier daemon's leaf, still busy.
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make cgroup %s: %w", g.path, err)
		}
		made = err == nil
	}
	if err := g.openFiles(); err != nil {
		g.Discard()
		return nil, fmt.Errorf("open cgroup %s: %w", g.path, err)
	}
	return g, nil
}

// cpuPeriod is the kernel's default cpu.max period, in microseconds.
const cpuPeriod = 100_000

func (h *Hierarchy) limit(g *Group, l Limits) error {
	set := func(controller, file, value string) error {
		if !h.controllers[controller] {
			return fmt.Errorf("%w: %s", ErrNoController, controller)
		}
		return g.write(file, value)
	}
	if l.MemoryBytes > 0 {
		if err := set("memory", "memory.max", strconv.FormatUint(l.MemoryBytes, 10)); err != nil {
			return err
		}
		// Without swap to escape to, the limit is the limit. A kernel without
		// swap accounting has no such file.
		if err := g.write("memory.swap.max", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if l.CPUMillicores > 0 {
		quota := uint64(l.CPUMillicores) * cpuPeriod / 1000
		if err := set("cpu", "cpu.max", fmt.Sprintf("%d %d", quota, cpuPeriod)); err != nil {
			return err
		}
	}
	if l.Pids > 0 {
		return set("pids", "pids.max", strconv.FormatUint(uint64(l.Pids), 10))
	}
	return nil
}

// tidyPause lies between the end of a command and the removal of its group. To
// remove one and to make another takes a tenth of what a command does: the answer
// does not wait for that, and of many that end one after the other, few wake a
// thread for it.
const tidyPause = 10 * time.Millisecond

// release has g given up a moment later, with others, or at once where many are.
func (h *Hierarchy) release(g *Group) {
	h.mu.Lock()
	now := h.closed || len(h.over) == h.most
	if !now {
		h.over = append(h.over, g)
		if len(h.over) == 1 {
			h.tidied.Add(1)
			time.AfterFunc(tidyPause, h.tidy)
		}
	}
	h.mu.Unlock()
	if now {
		g.giveUp()
	}
}

// tidy gives up the groups that were released.
func (h *Hierarchy) tidy() {
	defer h.tidied.Done()
	h.tidying.Lock()
	defer h.tidying.Unlock()
	h.mu.Lock()
	over := h.over
	h.over = nil
	h.mu.Unlock()
	for _, g := range over {
		h.addSpare(g.class)
		g.giveUp()
	}
}

// Run removes released groups as they become empty, until ctx ends or Close.
func (h *Hierarchy) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = h.events.Close() })
	defer stop()
	var buf [64 * unix.SizeofInotifyEvent]byte
	for {
		// A file's watch has no name in its events: they are of one size. What
		// happened does not matter, and after an overflow we look at them all.
		if _, err := h.events.Read(buf[:]); errors.Is(err, os.ErrClosed) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read cgroup events: %w", err)
		}
		h.sweep()
	}
}

// sweep removes the busy groups that have become empty.
func (h *Hierarchy) sweep() {
	var gone []*Group
	h.mu.Lock()
	for wd, g := range h.busy {
		if g.remove() {
			h.unwatch(wd)
			delete(h.busy, wd)
			gone = append(gone, g)
		}
	}
	h.mu.Unlock()
	for _, g := range gone {
		g.gone()
	}
}

// Close takes the daemon back to where it was and removes the hierarchy's own
// groups, as far as they are empty.
func (h *Hierarchy) Close() error {
	h.dropSpares(true)
	h.tidied.Wait()
	_ = h.events.Close()
	h.sweep()
	h.leave()
	var errs []error
	for _, dir := range slices.Backward(h.groups()) {
		removeEmpty(dir)
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) || !ownLeft(dir) {
			continue
		}
		errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
	}
	return errors.Join(errs...)
}

// ownLeft tells whether leaves of ours are below dir, rather than only those of
// another daemon that shares the root.
func ownLeft(dir string) bool {
	own, err := filepath.Glob(filepath.Join(dir, fmt.Sprintf("%d-*", os.Getpid())))
	return err == nil && len(own) > 0
}

// keyed reads "key value" lines, as in cpu.stat.
func keyed(text string, yield func(key string, value uint64)) {
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			yield(key, n)
		}
	}
}
