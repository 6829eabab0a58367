package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// Options choose what is watched.
type Options struct {
	Recursive bool // directories below too, those made later included
	// AllowNetwork lets the root, and mounts below it, be on network
	// filesystems. Only changes made through this machine are seen there.
	AllowNetwork bool
	// Do runs what looks at directories, on the goroutine of its caller, and
	// returns its error or one of its own: to open them as a user. Nil just
	// runs it.
	Do func(fn func() error) error
	// OpenAt opens what exists at a path relative to a directory, or to the
	// working directory for unix.AT_FDCWD, close-on-exec, in Do: to say which
	// links may be followed. Its errors match the errno. Nil is openat(2).
	OpenAt func(dirfd int, path string, flags int) (int, error)
}

func (o *Options) openAt(dirfd int, path string, flags int) (int, error) {
	if o.OpenAt == nil {
		return linux.OpenAt(dirfd, path, flags, 0)
	}
	return o.OpenAt(dirfd, path, flags)
}

func (o *Options) do(fn func() error) error {
	if o.Do == nil {
		return fn()
	}
	return o.Do(fn)
}

const (
	// dirMask is what a directory is watched for. IN_MOVE_SELF ends a rename:
	// the kernel queues it after both halves. Removal is told by IN_IGNORED,
	// which comes in any case. Files that are written after their unlink have
	// no name to report (IN_EXCL_UNLINK).
	dirMask = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_DELETE |
		unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_MOVE_SELF |
		unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK
	// aboveMask is what the root's parent is watched for: the removal of the
	// root, and a rename over it. The root itself tells nothing as long as any
	// process has it open or as its working directory.
	aboveMask = unix.IN_DELETE | unix.IN_MOVED_TO | unix.IN_ONLYDIR

	// bufferSize is how much is read at once, in bytes: some 2,000 events with
	// short names. Also the size of a getdents buffer.
	bufferSize = 64 << 10
	// maxBatch bounds the events of one batch: a tree of that size moved into
	// the watch costs some 26 MB before anything can be sent.
	maxBatch = 1 << 18
)

// buffers holds read buffers while nobody reads; an idle watcher has none.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// past is a deadline that interrupts a read.
var past = time.Unix(1, 0)

// Watcher reports the changes below one directory. Open makes it and its caller
// ends it with Close. One goroutine at a time may call Next; Close may be called
// from any, and more than once.
//
// It owns the inotify descriptor. It holds no descriptor of the directory, so
// that it keeps no filesystem from being unmounted.
type Watcher struct {
	file   *os.File // the inotify descriptor
	conn   syscall.RawConn
	closed atomic.Bool

	// All below is touched by Open and Next only.

	fd    int // the same descriptor; valid in Open and while conn.Read runs
	opts  Options
	root  *node
	where string // the root's path, with no symbolic link in it
	above int32  // watch descriptor of the root's parent, -1 for none
	byWd  map[int32]*node
	// retired holds watch descriptors given back whose IN_IGNORED was not read
	// yet. Until then, their events are old, should the kernel give the number
	// out again.
	retired map[int32]struct{}

	queue []record // read and not handled yet
	read  int64    // bytes read so far
	out   []Event  // the batch being made
	err   error    // why there is no more after out

	setup    bool       // Open is running: what is found is not news
	leaves   bool       // a link count of 2 means no subdirectories
	entries  []byte     // getdents buffer while a list runs
	fresh    []*node    // found by the list that runs
	settling []*node    // with found set, in the order of their fences
	hints    []*hint    // in the order of their fences
	retry    []retry    // directories whose parent could not be reached
	renames  renameRing // recent halves of renames, for From

	pathOf   *node // the node whose path is in pathText
	pathText string
}

// retry is a directory that is to be entered once its parent's path is right.
type retry struct {
	slot
	announce bool // its Create was not reported yet
}

// Open starts to watch the directory path; symbolic links in path are followed.
// Every change made after Open returned is reported. Errors match ErrNotFound,
// ErrNotDirectory, ErrNetworkMount, ErrWatchLimit or the errno.
func Open(path string, opts Options) (w *Watcher, err error) {
	err = opts.do(func() (err error) {
		w, err = open(path, opts)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	return w, nil
}

func open(path string, opts Options) (*Watcher, error) {
	dir, err := opts.openLong(unix.AT_FDCWD, path, unix.O_PATH|unix.O_DIRECTORY)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, ErrNotFound
	case errors.Is(err, unix.ENOTDIR):
		return nil, ErrNotDirectory
	case err != nil:
		return nil, err
	}
	defer unix.Close(dir)
	kind, err := filesystemOf(dir)
	if err != nil {
		return nil, err
	}
	if kind.network() && !opts.AllowNetwork {
		return nil, ErrNetworkMount
	}
	fd, err := linux.OpenInotify()
	if err != nil {
		return nil, instanceError(err)
	}
	w := &Watcher{
		fd: fd, opts: opts, above: -1,
		byWd: make(map[int32]*node), setup: true, leaves: kind.countsLinks(),
	}
	if err := w.plant(dir); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	w.setup = false
	w.file = os.NewFile(uintptr(fd), "inotify") // a descriptor
	if w.conn, err = w.file.SyscallConn(); err != nil {
		_ = w.file.Close()
		return nil, err
	}
	return w, nil
}

// plant sets the watches of the root behind dir, of its parent and, when asked,
// of everything below it.
func (w *Watcher) plant(dir int) error {
	link := fmt.Sprintf("/proc/self/fd/%d", dir)
	where, err := os.Readlink(link)
	if err != nil {
		return err
	}
	w.where = where
	if where != "/" {
		if err := w.watchAbove(dir); err != nil {
			return err
		}
	}
	root, err := w.opts.openAt(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	w.scan(func() { w.adopt(root, slot{name: path.Base(where)}, false, true) })
	if w.err != nil {
		return w.err
	}
	// A removal or rename is seen from here on; before the watches were set it
	// was not.
	if now, err := os.Readlink(link); err != nil || now != where {
		return ErrNotFound
	}
	return nil
}

func (w *Watcher) watchAbove(dir int) error {
	up, err := w.opts.openAt(dir, "..", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(up)
	wd, err := linux.AddWatch(w.fd, up, aboveMask)
	switch {
	case err == nil:
		w.above = wd
	case errors.Is(err, unix.EACCES): // the root's own events must do
	default:
		return watchError(err)
	}
	return nil
}

// Close ends the watch. A Next that runs returns ErrClosed before Close does.
func (w *Watcher) Close() error {
	if w.closed.Swap(true) {
		return nil
	}
	return w.file.Close()
}

// Next waits for changes and returns a batch of them, at least one, which is the
// caller's. After the last batch it returns the reason for the end, and the same
// one from then on: ErrOverflow, ErrRootRemoved, ErrWatchLimit when a new
// directory could not be watched, ErrClosed, or a failed system call. The error
// of a context that ended is not final.
func (w *Watcher) Next(ctx context.Context) ([]Event, error) {
	for {
		if batch := w.out; len(batch) > 0 {
			w.out = nil
			return batch, nil
		}
		if w.err != nil {
			return nil, w.err
		}
		if err := w.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// wait reads and handles what is queued, waiting for something if nothing is.
func (w *Watcher) wait(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if ctx.Done() != nil {
		woken := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(woken)
			_ = w.file.SetReadDeadline(past)
		})
		defer func() {
			if !stop() {
				<-woken
				_ = w.file.SetReadDeadline(time.Time{})
			}
		}()
	}
	// The descriptor cannot be closed while conn.Read runs.
	err := w.conn.Read(w.drain)
	switch {
	case err == nil:
		return nil
	case w.closed.Load():
		return ErrClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ctx.Err()
	default:
		return fmt.Errorf("read inotify: %w", err)
	}
}

// drain reads once and handles it all. It reports false when nothing is queued.
func (w *Watcher) drain(fd uintptr) bool {
	w.fd = int(fd) // a descriptor
	if !w.fill() {
		return w.err != nil
	}
	w.fail(w.opts.do(func() error {
		for i := 0; i < len(w.queue) && w.err == nil; i++ {
			w.handle(i)
		}
		w.queue = nil
		w.settle(w.read)
		return nil
	}))
	return true
}

// fill appends what the kernel has queued, as much as fits one buffer. It
// reports false when that is nothing.
func (w *Watcher) fill() bool {
	buf, _ := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	n, err := linux.Read(uintptr(w.fd), buf[:]) // a descriptor
	if errors.Is(err, unix.EAGAIN) {
		return false
	}
	if err != nil {
		w.fail(fmt.Errorf("read inotify: %w", err))
		return false
	}
	w.queue, err = parse(w.queue, buf[:n], w.read)
	w.fail(err)
	w.read += int64(n)
	return true
}

// fail notes the first error; what was made before it is still returned.
func (w *Watcher) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

// emit adds an event about a name in a directory.
func (w *Watcher) emit(kind Kind, dir *node, name, from string) {
	if len(w.out) >= maxBatch {
		w.fail(ErrOverflow)
		return
	}
	w.out = append(w.out, Event{Kind: kind, Name: w.name(dir, name), From: from})
}

// name is the name of an entry relative to the root. Runs of events are mostly
// about one directory, whose path is kept.
func (w *Watcher) name(dir *node, name string) string {
	if w.pathOf != dir {
		w.pathOf, w.pathText = dir, dir.path()
	}
	return join(w.pathText, name)
}
