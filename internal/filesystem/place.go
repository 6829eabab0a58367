package filesystem

import (
	"errors"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// place is a name in a pinned directory. Calls that take a name work on it: what
// becomes of the path that led to the directory changes nothing for them. Who
// made it ends it with close.
type place struct {
	dir  int    // O_PATH, or unix.AT_FDCWD from locate
	name string // one element of a path; "/" where that is the root
}

func (p place) close() {
	if p.dir >= 0 {
		_ = unix.Close(p.dir)
	}
}

// locate is the place at path. In a view without limits that is the path itself:
// it can lead nowhere that others could not.
func (v *View) locate(path string) (place, error) {
	if !v.limited() {
		return place{unix.AT_FDCWD, path}, nil
	}
	return v.pinPlace(path)
}

// pinPlace pins the directory that path is in; links are followed.
func (v *View) pinPlace(path string) (place, error) {
	if len(path) >= pathMax {
		return place{}, unix.ENAMETOOLONG // as if the kernel were given all of it
	}
	dir, err := v.open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	return place{dir, filepath.Base(path)}, err
}

// placeOf is the place at path, which pathOf told of the pinned file that st
// describes. It is ErrMoved if another file is there, or none.
func (v *View) placeOf(path string, st *unix.Stat_t) (place, error) {
	p, err := v.pinPlace(path)
	if err != nil {
		return p, moved(err)
	}
	var now unix.Stat_t
	err = moved(statAt(p.dir, p.name, &now))
	if err == nil && inodeOf(&now) != inodeOf(st) {
		err = ErrMoved
	}
	if err != nil {
		p.close()
	}
	return p, err
}

func moved(err error) error {
	if errors.Is(belowFile(err), unix.ENOENT) {
		return ErrMoved
	}
	return err
}

// whileMoved calls do until a file does not move under it, but at most so often:
// somebody may move it all the time, or it is gone for good and still open.
func whileMoved(tries int, do func() error) (err error) {
	for range tries {
		if err = do(); !errors.Is(err, ErrMoved) {
			break
		}
	}
	return err
}

// pinNewPlace is pinPlace, but missing directories are made, owned by the user.
// Its error is that of failed.
func (v *View) pinNewPlace(path string) (place, error) {
	p, err := v.pinPlace(path)
	if errors.Is(belowFile(err), unix.ENOENT) {
		p.dir, err = v.makeDirs(filepath.Dir(path))
	}
	return p, failed("make directory", path, err)
}

// makeDirs pins the directory at path, made if it is missing, with the missing
// ones above it, owned by the user. Its error is that of failed.
func (v *View) makeDirs(path string) (fd int, err error) {
	if fd, err = v.open(path, unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
		return fd, nil
	}
	err = v.owned(func() error {
		fd, err = v.makeMissing(path)
		return err
	})
	return fd, err
}

func (v *View) makeMissing(path string) (int, error) {
	fd, err := v.open(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if !errors.Is(belowFile(err), unix.ENOENT) || path == "/" {
		return fd, failed("make directory", path, err)
	}
	above, err := v.makeMissing(filepath.Dir(path))
	if err != nil {
		return -1, err
	}
	p := place{above, filepath.Base(path)}
	defer p.close()
	made := p.makeDir()
	if made != nil && !errors.Is(made, unix.EEXIST) {
		return -1, failed("make directory", path, made)
	}
	fd, err = v.openAt(p.dir, p.name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) && made != nil {
		err = made // by a link that leads nowhere
	}
	return fd, failed("make directory", path, err)
}

// makeDir makes the directory; it is called inside owned.
func (p place) makeDir() error {
	return linux.Retry(func() error { return unix.Mkdirat(p.dir, p.name, newDirMode) })
}
