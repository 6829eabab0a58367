package filesystem

import (
	"os"

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

// openAt opens path relative to dirfd. With the user's own reach it follows no
// link of /proc to an open file: the kernel lets the daemon's threads through
// those of the daemon, past directories that keep the user out.
func (v *View) openAt(dirfd int, path string, flags int, mode uint32) (int, error) {
	if v.limited() {
		return linux.OpenNoMagic(dirfd, path, flags, mode)
	}
	return linux.OpenAt(dirfd, path, flags, mode)
}

// OpenAt opens what exists at path, relative to dirfd, with the rules of the
// view about links: for a caller that works with descriptors itself, in Do. A
// link of /proc that a limited view refuses is ErrInvalid.
func (v *View) OpenAt(dirfd int, path string, flags int) (int, error) {
	fd, err := v.openAt(dirfd, path, flags, 0)
	return fd, classify(err)
}

// open opens a path of the client's.
func (v *View) open(path string, flags int, mode uint32) (int, error) {
	return v.openAt(unix.AT_FDCWD, path, flags, mode)
}

// pin is pinAt for a path of the client's.
func (v *View) pin(path string) (fd int, st unix.Stat_t, err error) {
	return v.pinAt(unix.AT_FDCWD, path)
}

// pinAt holds on to what is at path, relative to dirfd and with links followed,
// without opening it: no driver hears of it and no FIFO blocks. The caller closes
// fd.
func (v *View) pinAt(dirfd int, path string) (fd int, st unix.Stat_t, err error) {
	fd, err = v.openAt(dirfd, path, unix.O_PATH, 0)
	if err != nil {
		return -1, st, err
	}
	return withStat(fd)
}

// stat is what is at a path of the client's; links are followed.
func (v *View) stat(path string) (st unix.Stat_t, err error) {
	fd, st, err := v.pin(path)
	if err != nil {
		return st, err
	}
	return st, unix.Close(fd)
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

// limited says whether the user's rights are less than the daemon's.
func (v *View) limited() bool { return v.Confined && v.User.UID != 0 }
