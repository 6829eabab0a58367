package filesystem

import (
	"errors"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// blockBytes is the unit of st_blocks (stat(2)), whatever the filesystem's own.
const blockBytes = 512

// room is ErrNoSpace if need more bytes do not fit into the filesystem of the
// open file fd. A filesystem that tells no size has room.
func (v *View) room(fd int, need int64) error {
	if need <= 0 {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return err
	}
	return v.fits(&st, need)
}

// roomFor is room for a file that is to be made at path, whose directories may
// be missing too.
func (v *View) roomFor(path string, need int64) error {
	if need <= 0 {
		return nil
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		fd, err := v.open(dir, unix.O_PATH, 0)
		if err == nil {
			defer unix.Close(fd)
			return v.room(fd, need)
		}
		if !errors.Is(err, unix.ENOENT) || dir == "/" {
			return err
		}
	}
}

func (v *View) fits(st *unix.Statfs_t, need int64) error {
	// The blocks kept for root are root's to fill, and the daemon's unless it
	// is held to the user's rights.
	free := st.Bfree
	if v.limited() {
		free = st.Bavail
	}
	block := max(st.Bsize, 1)
	if st.Blocks > 0 && uint64((need-1)/block+1) > free {
		return ErrNoSpace
	}
	return nil
}
