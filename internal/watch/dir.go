package watch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// filesystem is a statfs magic number (statfs(2)).
type filesystem int64

func filesystemOf(fd int) (filesystem, error) {
	var st unix.Statfs_t
	if err := linux.Retry(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return 0, fmt.Errorf("fstatfs: %w", err)
	}
	return filesystem(uint32(st.Type)), nil // its sign depends on the machine
}

// network reports whether others may change the filesystem unseen. FUSE counts
// as one: most of its users are remote.
func (f filesystem) network() bool {
	switch f {
	case unix.NFS_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC:
		return true
	}
	return false
}

// countsLinks reports whether a directory with a link count of 2 has no
// subdirectories for certain. Other filesystems may not count them.
func (f filesystem) countsLinks() bool {
	return f == unix.EXT4_SUPER_MAGIC || f == unix.TMPFS_MAGIC
}

// openLong is openAt for paths of any length.
func (o *Options) openLong(at int, path string, flags int) (int, error) {
	base := at
	for len(path) >= unix.PathMax {
		cut := strings.LastIndexByte(path[:unix.PathMax-1], '/')
		if cut <= 0 {
			break
		}
		next, err := o.openAt(base, path[:cut], unix.O_PATH|unix.O_DIRECTORY)
		if base != at {
			_ = unix.Close(base)
		}
		if err != nil {
			return -1, err
		}
		base, path = next, path[cut+1:]
	}
	fd, err := o.openAt(base, path, flags)
	if base != at {
		_ = unix.Close(base)
	}
	return fd, err
}

// gone matches the errors of a path that leads to no directory any more.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// refused matches the errors of directories that cannot be followed.
func refused(err error) bool {
	return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)
}

// eachEntry calls f for the entries of a getdents64 buffer, except "." and
// "..". The name is valid during the call.
func eachEntry(buf []byte, f func(name []byte, kind byte)) {
	const (
		lengthAt = 16 // struct linux_dirent64 (getdents64(2)): d_ino, d_off, d_reclen
		kindAt   = 18
		nameAt   = 19
	)
	for len(buf) > nameAt {
		size := int(binary.NativeEndian.Uint16(buf[lengthAt:]))
		if size <= nameAt || size > len(buf) {
			return
		}
		name := buf[nameAt:size]
		if end := bytes.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
		if s := string(name); s != "" && s != "." && s != ".." {
			f(name, buf[kindAt])
		}
		buf = buf[size:]
	}
}

// statKind is an entry's type where the list does not tell.
func statKind(at int, name string) byte {
	var st unix.Stat_t
	if unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.DT_DIR
	}
	return unix.DT_REG
}
