package filesystem

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

const (
	// openLevels bounds the descriptors that one removal holds: of the highest
	// levels, and beyond those of the last two.
	openLevels = 64
	// removeBatch is how many names of one directory are kept at once.
	removeBatch = 1024
)

// removeTree removes what is at p, known as path, with everything below it. What
// is gone already is no error. After the first error, which it returns, the rest
// is removed all the same. No link is followed.
func removeTree(p place, path string) error {
	err := unlinkAt(p.dir, p.name, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unlinkAt(p.dir, p.name, unix.AT_REMOVEDIR) // an empty one needs no more
	}
	if err == nil {
		return nil
	}
	r := removal{top: p.dir, root: path}
	r.remove(p.dir, p.name)
	return r.finish()
}

// removeCopied is removeTree for what was copied from p, known as path. What has
// taken its name meanwhile stays: a directory is emptied only if it is that one,
// and what is removed by its name alone is an empty one or a file, as who may
// swap names there could do, too.
func removeCopied(p place, path string, copied inode) error {
	dir, err := openDir(p.dir, p.name)
	var st unix.Stat_t
	switch {
	case errors.Is(err, unix.ENOTDIR):
		if err := statAt(p.dir, p.name, &st); err == nil && copied == inodeOf(&st) {
			return unlinkAt(p.dir, p.name, 0)
		}
		return nil
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return err
	}
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil || copied != inodeOf(&st) {
		_ = dir.Close()
		return err
	}
	r := removal{top: p.dir, root: path}
	r.enter(level{dir: dir, name: p.name})
	return r.finish()
}

// removal is a tree on its way out. It does not recurse, so its depth costs some
// hundred bytes for each level and a bounded number of descriptors.
type removal struct {
	top    int     // directory that the tree is in
	root   string  // path of the tree, for messages
	levels []level // from the root of the tree to the directory at work
	err    error   // the first
}

// finish removes all that was entered.
func (r *removal) finish() error {
	for len(r.levels) > 0 {
		r.step()
	}
	return r.err
}

// level is a directory that is being emptied.
type level struct {
	dir    *os.File // nil while parked
	name   string   // in the directory above
	id     inode    // of one that was parked
	names  []string // read and not removed yet
	done   bool     // nothing more to read
	failed bool     // something in it stays
}

// step removes one name, or a directory that is empty.
func (r *removal) step() {
	l := &r.levels[len(r.levels)-1]
	if len(l.names) == 0 {
		if err := l.read(); err != nil {
			r.fail("", err)
		}
	}
	if len(l.names) == 0 {
		r.leave()
		return
	}
	name := l.names[0]
	l.names = l.names[1:]
	r.remove(int(l.dir.Fd()), name)
}

// read reads more names. Removing may make a filesystem skip some, so a
// directory is read from its start until little comes; where something stays,
// to its end.
func (l *level) read() error {
	if l.done {
		return nil
	}
	if !l.failed {
		if _, err := l.dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	var err error
	l.names, err = l.dir.Readdirnames(removeBatch)
	l.done = len(l.names) < removeBatch
	if len(l.names) > 0 || errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// remove removes name in dirfd, or makes it the last level if it is a directory.
func (r *removal) remove(dirfd int, name string) {
	err := unlinkAt(dirfd, name, 0)
	switch {
	case err == nil, errors.Is(belowFile(err), unix.ENOENT):
		return
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		// What a directory holds may be removed where the directory may not.
	default:
		r.fail(name, err)
		return
	}
	dir, openErr := openDir(dirfd, name)
	switch {
	case openErr == nil:
		r.enter(level{dir: dir, name: name})
	case errors.Is(openErr, unix.ENOENT):
	case errors.Is(openErr, unix.ENOTDIR):
		r.fail(name, err)
	case unlinkAt(dirfd, name, unix.AT_REMOVEDIR) != nil: // not even empty
		r.fail(name, openErr)
	}
}

// enter makes l the last level. Of the deep ones it parks the last but two.
func (r *removal) enter(l level) {
	r.levels = append(r.levels, l)
	if n := len(r.levels) - 3; n >= openLevels && r.levels[n].dir != nil {
		r.levels[n].park()
	}
}

// park closes the directory, to be found again by unpark.
func (l *level) park() {
	var st unix.Stat_t
	_ = unix.Fstat(int(l.dir.Fd()), &st) // what is not known is not found again
	l.id = inodeOf(&st)
	_ = l.dir.Close()
	l.dir = nil
}

// unpark opens the directory that below is in, and that a parked level was. One
// that something stays in is not read again: it would begin anew.
func (l *level) unpark(below *os.File) error {
	fd, err := linux.OpenAt(int(below.Fd()), "..", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	l.dir = os.NewFile(uintptr(fd), l.name)
	l.done = l.done || l.failed
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if l.id != inodeOf(&st) {
		return fmt.Errorf("moved meanwhile: %w", unix.ENOENT)
	}
	return nil
}

// leave removes the last level, which is empty unless something in it failed.
func (r *removal) leave() {
	n := len(r.levels) - 1
	l := r.levels[n]
	at := r.top
	if n > 0 {
		up := &r.levels[n-1]
		if up.dir == nil {
			if err := up.unpark(l.dir); err != nil {
				r.abort(err)
				return
			}
		}
		at = int(up.dir.Fd())
	}
	_ = l.dir.Close()
	r.levels[n] = level{}
	r.levels = r.levels[:n]
	err := unlinkAt(at, l.name, unix.AT_REMOVEDIR)
	switch {
	case err != nil && !errors.Is(err, unix.ENOENT):
		r.fail(l.name, err)
	case n == 0:
		r.err = nil // whatever it was, all is gone
	}
}

// fail notes that name, of the last level, stays.
func (r *removal) fail(name string, err error) {
	if n := len(r.levels); n > 0 {
		r.levels[n-1].failed = true
	}
	if r.err == nil {
		r.err = &fs.PathError{Op: "remove", Path: r.path(name), Err: err}
	}
}

// abort ends the removal where it is.
func (r *removal) abort(err error) {
	r.fail("", err)
	for _, l := range r.levels {
		if l.dir != nil {
			_ = l.dir.Close()
		}
	}
	r.levels = nil
}

// path is where name, of the last level, is. A path too long for any client is
// cut.
func (r *removal) path(name string) string {
	if len(r.levels) == 0 {
		return r.root
	}
	var b strings.Builder
	b.WriteString(r.root + "/")
	for _, l := range r.levels[1:] {
		if b.Len() > pathMax {
			return b.String() + "..."
		}
		b.WriteString(l.name + "/")
	}
	return filepath.Clean(b.String() + name)
}

func unlinkAt(dirfd int, name string, flags int) error {
	return linux.Retry(func() error { return unix.Unlinkat(dirfd, name, flags) })
}
