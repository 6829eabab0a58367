package filesystem

import (
	"errors"

	"golang.org/x/sys/unix"
)

// newDirMode is the mode of new directories, before the umask.
const newDirMode = 0o755

// MakeDir makes the directory at path and its missing parents, owned by the
// user. A directory there already is fs.ErrExist, anything else
// ErrNotDirectory.
func (v *View) MakeDir(path string) (e Entry, err error) {
	path, err = v.User.Resolve(path)
	if err != nil {
		return Entry{}, err
	}
	err = v.Do(func() error {
		p, err := v.pinNewPlace(path)
		if err != nil {
			return err
		}
		defer p.close()
		if err := v.owned(p.makeDir); err != nil {
			return failed("make directory", path, v.inTheWay(p, err))
		}
		e, err = v.describer().entry(p.dir, p.name, path)
		return failed("stat", path, err)
	})
	return e, err
}

// inTheWay is err of making the directory p, or ErrNotDirectory if a file is
// what stopped it.
func (v *View) inTheWay(p place, err error) error {
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	fd, openErr := v.openAt(p.dir, p.name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if openErr != nil {
		return ErrNotDirectory
	}
	_ = unix.Close(fd)
	return err
}

// Remove removes what is at path, with everything below a directory. Links are
// not followed. A path with nothing there succeeds; the empty path and the root
// are ErrInvalid.
func (v *View) Remove(path string) error {
	path, err := v.User.resolveNamed(path)
	if err != nil {
		return err
	}
	return v.Do(func() error {
		p, err := v.locate(path)
		if errors.Is(belowFile(err), unix.ENOENT) {
			return nil // below a file there is nothing
		}
		if err != nil {
			return failed("remove", path, err)
		}
		defer p.close()
		return failed("remove", path, removeTree(p, path))
	})
}
