package filesystem

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// Move renames source to destination and describes it there. Missing parents of
// the destination are made. As with rename(2), a file replaces a file and a
// directory an empty directory. Between filesystems the tree is copied beside
// the destination, renamed there once it is complete, and then removed at the
// source; owners, modes, times, attributes, links and holes are kept.
func (v *View) Move(source, destination string) (e Entry, err error) {
	if source, err = v.User.resolveNamed(source); err != nil {
		return Entry{}, err
	}
	if destination, err = v.User.resolveNamed(destination); err != nil {
		return Entry{}, err
	}
	err = v.Do(func() error {
		e, err = v.move(source, destination)
		return err
	})
	return e, err
}

func (v *View) move(source, destination string) (e Entry, err error) {
	from, err := v.pinPlace(source) // for all that follows
	if err != nil {
		return e, failed("move", source, belowFile(err))
	}
	defer from.close()
	// Before parents are made for nothing.
	var st unix.Stat_t
	if err := statAt(from.dir, from.name, &st); err != nil {
		return e, failed("move", source, belowFile(err))
	}
	to, err := v.pinNewPlace(destination)
	if err != nil {
		return e, err
	}
	defer to.close()
	err = from.rename(to)
	switch {
	case errors.Is(err, unix.EXDEV):
		err = v.moveAcross(from, to, source)
	case errors.Is(err, unix.EINVAL):
		err = kindError{ErrInvalid, errors.New("directory would move into itself")}
	case errors.Is(err, unix.EEXIST):
		err = unix.ENOTEMPTY // POSIX allows either; one text for both
	}
	if err != nil {
		return e, failed("move", destination, err)
	}
	e, err = v.describer().entry(to.dir, to.name, destination)
	return e, failed("stat", destination, err)
}

// rename is rename(2).
func (p place) rename(to place) error {
	return linux.Retry(func() error { return unix.Renameat(p.dir, p.name, to.dir, to.name) })
}

// moveAcross moves from one filesystem to another. source is the path of from.
func (v *View) moveAcross(from, to place, source string) error {
	temp, remove, err := v.tempPlace(to)
	if err != nil {
		return err
	}
	defer remove()
	copied, err := v.copyTree(from, temp)
	if err == nil {
		err = temp.rename(to)
	}
	if err != nil {
		_ = removeTree(temp, temp.name)
		return err
	}
	return removeCopied(from, source, copied)
}

// tempPlace is where the copy of a tree grows until it is renamed to to; it ends
// with remove. For the user's own reach that is beside to. Root's must not be
// lent to who may write there and swaps what was just made: it works in a
// directory that only root writes to.
func (v *View) tempPlace(to place) (temp place, remove func(), err error) {
	name := tempName()
	if v.limited() || os.Geteuid() != 0 {
		return place{to.dir, name}, func() {}, nil
	}
	if err := unix.Mkdirat(to.dir, name, 0o700); err != nil {
		return place{}, nil, err
	}
	// If something else has that name in the end, at most it is empty too.
	rmdir := func() { _ = unlinkAt(to.dir, name, unix.AT_REMOVEDIR) }
	dir, err := privateDir(to.dir, name)
	if err != nil {
		rmdir()
		return place{}, nil, err
	}
	return place{dir, name}, func() { _ = unix.Close(dir); rmdir() }, nil
}

// privateDir pins the directory name in dirfd if it is root's and nobody else may
// write to it: another of that kind serves as well. Not all filesystems keep
// other modes of 0700.
func privateDir(dirfd int, name string) (int, error) {
	fd, st, err := pin(dirfd, name)
	if err != nil {
		return -1, err
	}
	if st.Mode&(unix.S_IFMT|0o022) != unix.S_IFDIR || st.Uid != 0 {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%w: the directory for the copy is not root's alone", unix.EPERM)
	}
	return fd, nil
}
