package guest

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// ErrOtherHome means that a path begins with another user's home, "~name".
var ErrOtherHome = errors.New("another user's home is not supported")

// ResolvePath makes path absolute for acct: "~" and "~/x" are its home, a
// relative path is below its home, and an empty one means workdir or else the
// home. It does not look at the file system.
func (acct Account) ResolvePath(path, workdir string) (string, error) {
	home := acct.Home
	if home == "" {
		home = "/"
	}
	switch {
	case path == "" && workdir == "":
		path = home
	case path == "":
		return acct.ResolvePath(workdir, "")
	case path == "~":
		path = home
	case strings.HasPrefix(path, "~/"):
		path = filepath.Join(home, path[2:])
	case path[0] == '~':
		return "", fmt.Errorf("%w: %s", ErrOtherHome, path)
	case path[0] != '/':
		path = filepath.Join(home, path)
	}
	if !filepath.IsAbs(path) {
		path = "/" + path
	}
	return filepath.Clean(path), nil
}
