package filesystem

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Resolve is the absolute, clean path that a client means by path: "~" and
// "~/x" are in the user's home, relative paths are under it, and the empty path
// is the working directory. Another user's home ("~other") is ErrInvalid, as is
// a path with a zero byte. Resolve does not look at the filesystem; ".."
// removes the name before it even where that is a symbolic link.
func (u *User) Resolve(path string) (string, error) {
	if path == "" {
		path = u.Workdir
	}
	home := filepath.Join("/", u.Home)
	resolved := filepath.Join(home, path)
	switch {
	case path == "~", strings.HasPrefix(path, "~/"):
		resolved = filepath.Join(home, path[1:])
	case strings.HasPrefix(path, "~"):
		return "", fmt.Errorf("%w: path %q: the home of another user", ErrInvalid, path)
	case filepath.IsAbs(path):
		resolved = filepath.Clean(path)
	}
	if strings.IndexByte(resolved, 0) >= 0 {
		return "", fmt.Errorf("%w: path %q contains a zero byte", ErrInvalid, resolved)
	}
	return resolved, nil
}

// resolveNamed is Resolve for operations that must not fall back to the
// working directory when a client forgets the path, nor work on the root.
func (u *User) resolveNamed(path string) (string, error) {
	if path == "" {
		return "", fmt.Errorf("%w: empty path", ErrInvalid)
	}
	path, err := u.Resolve(path)
	if err == nil && path == "/" {
		return "", fmt.Errorf("%w: path is the root directory", ErrInvalid)
	}
	return path, err
}
