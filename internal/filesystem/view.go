package filesystem

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// User is whom a request acts for.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
	Home     string   // empty: the root directory
	Workdir  string   // what the empty path means; empty: the home
}

// Names turns ids into names, or into "" where there is none. Calls need not
// be cheap: one operation asks once for each id.
type Names interface {
	UserName(uid uint32) string
	GroupName(gid uint32) string
}

// View is the filesystem for one user's request. Do not change it once it is
// in use.
type View struct {
	User  User
	Names Names // nil: owners are shown as numbers

	// Confined limits the view to what the user itself may do. Root may do
	// everything.
	Confined bool
}

// Do runs fn, on this goroutine, with the reach of the view. The methods do so
// themselves. A caller that streams a File wraps the whole transfer: some files
// of /proc check the reader at each read. Calls may nest.
func (v *View) Do(fn func() error) error {
	if !v.limited() {
		return fn()
	}
	return linux.DoAs(linux.FSIdentity{UID: v.User.UID, GID: v.User.GID, Groups: v.User.Groups}, fn)
}

// owned runs fn so that what it makes belongs to the user from the start, and
// no moment is left in which another directory could be given to the user in
// place of the new one. It is called inside Do.
func (v *View) owned(fn func() error) error {
	if v.limited() {
		return fn()
	}
	return linux.DoAs(linux.FSIdentity{UID: v.User.UID, GID: v.User.GID, KeepCapabilities: true}, fn)
}

// open opens a path of the client's. With the user's own reach it follows no
// link of /proc to an open file: the kernel lets the daemon's threads through
// those of the daemon, past directories that keep the user out.
func (v *View) open(path string, flags int, mode uint32) (int, error) {
	if v.limited() {
		return linux.OpenNoMagic(unix.AT_FDCWD, path, flags, mode)
	}
	return linux.OpenAt(unix.AT_FDCWD, path, flags, mode)
}

// pin is the function pin for a path of the client's; links are followed.
func (v *View) pin(path string) (fd int, st unix.Stat_t, err error) {
	fd, err = v.open(path, unix.O_PATH, 0)
	if err != nil {
		return -1, st, err
	}
	return withStat(fd)
}

// openDir opens the directory at a path of the client's for reading; links are
// followed.
func (v *View) openDir(path string) (*os.File, error) {
	fd, err := v.open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// doNamed is Do for calls that take names instead of descriptors. In a limited
// view it refuses paths with a magic link of /proc among their directories, as
// open does. Who puts one there between this and the call is not seen.
func (v *View) doNamed(fn func() error, paths ...string) error {
	return v.Do(func() error {
		for _, path := range paths {
			if err := v.checkWay(path); err != nil {
				return failed("reach", path, err)
			}
		}
		return fn()
	})
}

// Reach is ErrInvalid where a limited view refuses the directory at path for a
// magic link of /proc: for a caller that opens it by its name, in Do.
func (v *View) Reach(path string) error {
	return v.Do(func() error { return failed("reach", path, v.checkWay(filepath.Join(path, "entry"))) })
}

// checkWay looks at the directories of path that are there. What else is wrong
// with them, the call itself finds out.
func (v *View) checkWay(path string) error {
	if !v.limited() {
		return nil
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		fd, err := v.open(dir, unix.O_PATH, 0)
		switch {
		case err == nil:
			return unix.Close(fd)
		case errors.Is(err, unix.ELOOP):
			return err
		case !errors.Is(err, unix.ENOENT) || dir == "/":
			return nil
		}
	}
}

// limited says whether the user's rights are less than the daemon's.
func (v *View) limited() bool { return v.Confined && v.User.UID != 0 }
