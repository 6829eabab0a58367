package filesystem

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

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
	err = v.doNamed(func() error {
		if err := v.makeParents(path); err != nil {
			return err
		}
		err := v.owned(func() error { return os.Mkdir(path, newDirMode) })
		if err != nil {
			return failed("make directory", path, inTheWay(path, err))
		}
		e, err = v.Stat(path)
		return err
	}, path)
	return e, err
}

// inTheWay is err of making the directory path, or ErrNotDirectory if a file
// is what stopped it.
func inTheWay(path string, err error) error {
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if st, statErr := os.Stat(path); statErr == nil && st.IsDir() {
		return err
	}
	return ErrNotDirectory
}

// makeParents makes the missing directories above path, owned by the user.
func (v *View) makeParents(path string) error {
	dir := filepath.Dir(path)
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	err := v.owned(func() error { return os.MkdirAll(dir, newDirMode) })
	return failed("make directory", dir, err)
}

// Remove removes what is at path, with everything below a directory. Links are
// not followed. A path with nothing there succeeds; the empty path and the root
// are ErrInvalid.
func (v *View) Remove(path string) error {
	path, err := v.User.resolveNamed(path)
	if err != nil {
		return err
	}
	return v.doNamed(func() error {
		return failed("remove", path, removeTree(place{unix.AT_FDCWD, path}, path))
	}, path)
}
