package filesystem

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// List calls yield with the entries below the directory at path, depth levels
// deep (at least one), in the order of filepath.WalkDir and without the
// directory itself. A symbolic link at path is followed, those below are not.
// Entries that vanish meanwhile are left out, as is what directories below path
// hold if they cannot be read, or lie so deep that no client could name it. An
// error of yield ends the listing and is returned.
//
// Memory grows with the names of the largest directory, not with the tree.
func (v *View) List(path string, depth uint32, yield func(Entry) error) error {
	path, err := v.User.Resolve(path)
	if err != nil {
		return err
	}
	return v.Do(func() error {
		dir, err := v.openDir(path)
		if err != nil {
			return failed("list", path, err)
		}
		defer dir.Close()
		names, err := sortedNames(dir)
		if err != nil {
			return failed("list", path, err)
		}
		l := lister{describer: v.describer(), yield: yield}
		return l.list(dir, path, names, max(depth, 1))
	})
}

type lister struct {
	*describer
	yield func(Entry) error
}

// list yields the names of dir, known as path. It holds one descriptor for
// each level, at most PATH_MAX/2 of them.
func (l *lister) list(dir *os.File, path string, names []string, depth uint32) error {
	dirfd := int(dir.Fd())
	prefix := path
	if prefix != "/" {
		prefix += "/"
	}
	for _, name := range names {
		e, err := l.entry(dirfd, name, prefix+name)
		if err != nil {
			continue
		}
		if err := l.yield(e); err != nil {
			return err
		}
		if depth > 1 && e.Mode.IsDir() && len(e.Path) < pathMax {
			if err := l.descend(dirfd, name, e.Path, depth-1); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lister) descend(dirfd int, name, path string, depth uint32) error {
	dir, err := openDir(dirfd, name)
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := sortedNames(dir)
	return l.list(dir, path, names, depth)
}

// openDir opens the directory name in dirfd for reading; no link is followed.
func openDir(dirfd int, name string) (*os.File, error) {
	fd, err := linux.OpenAt(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// sortedNames are the names in dir, those before an error too.
func sortedNames(dir *os.File) ([]string, error) {
	names, err := dir.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}
