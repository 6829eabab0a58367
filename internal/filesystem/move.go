package filesystem

import (
	"errors"

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
	from, err := v.locate(source)
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
	temp := place{to.dir, tempName()}
	err := v.copyTree(from, temp)
	if err == nil {
		err = temp.rename(to)
	}
	if err != nil {
		_ = removeTree(temp, temp.name)
		return err
	}
	return removeTree(from, source)
}
