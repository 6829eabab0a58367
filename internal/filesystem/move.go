package filesystem

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
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
	err = v.doNamed(func() error {
		if err := v.move(source, destination); err != nil {
			return err
		}
		e, err = v.Stat(destination)
		return err
	}, source, destination)
	return e, err
}

func (v *View) move(source, destination string) error {
	// Before parents are made for nothing.
	if _, err := os.Lstat(source); err != nil {
		return failed("move", source, belowFile(err))
	}
	if err := v.makeParents(destination); err != nil {
		return err
	}
	err := unix.Rename(source, destination)
	switch {
	case errors.Is(err, unix.EXDEV):
		err = v.moveAcross(source, destination)
	case errors.Is(err, unix.EINVAL):
		err = kindError{ErrInvalid, errors.New("directory would move into itself")}
	case errors.Is(err, unix.EEXIST):
		err = unix.ENOTEMPTY // POSIX allows either; one text for both
	}
	return failed("move", destination, err)
}

// moveAcross is move from one filesystem to another.
func (v *View) moveAcross(source, destination string) error {
	temp := filepath.Join(filepath.Dir(destination), tempName())
	err := v.copyTree(source, temp)
	if err == nil {
		err = unix.Rename(temp, destination)
	}
	if err != nil {
		_ = removeTree(place{unix.AT_FDCWD, temp}, temp)
		return err
	}
	return removeTree(place{unix.AT_FDCWD, source}, source)
}
