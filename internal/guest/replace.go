package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// edit replaces the content of the file at path, or of what it leads to as a
// symbolic link, with what change makes of it. A missing file is empty and
// comes to be, readable by all. Nothing is written when nothing changes.
func edit(path string, change func([]byte) []byte) error {
	if to, err := filepath.EvalSymlinks(path); err == nil {
		path = to
	}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("edit: %w", err)
	}
	changed := change(bytes.Clone(old))
	if err == nil && bytes.Equal(changed, old) {
		return nil
	}
	return replace(path, changed)
}

// replace gives the file at path new content, and keeps its mode and owner.
// Readers see the old content or the new, never a mixture, but where the file
// cannot be replaced by another, as one that is a mount of its own: there it
// is written over.
func replace(path string, content []byte) error {
	err := renameInto(path, content)
	// A full disk would leave half of it.
	if err == nil || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return err
	}
	f, openErr := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if openErr != nil {
		return err // the first says more
	}
	_, err = f.WriteAt(content, 0)
	if err == nil {
		err = f.Truncate(int64(len(content)))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write over: %w", err)
	}
	return nil
}

// renameInto writes a file beside path and renames it to path.
func renameInto(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".envd-*")
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close() // closed already, perhaps
			_ = os.Remove(f.Name())
			err = fmt.Errorf("replace %s: %w", path, err)
		}
	}()
	perm := fs.FileMode(0o644)
	var st unix.Stat_t
	if unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
		perm = fs.FileMode(st.Mode & 0o777)
		if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if err := f.Chmod(perm); err != nil { // after chown, which drops bits
		return err
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
