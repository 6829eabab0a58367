package filesystem

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// File is a regular file open for reading. Whoever opened it closes it.
type File struct {
	*os.File

	Path    string // absolute, as resolved
	Size    int64
	ModTime time.Time

	// Generated says that the kernel makes up the contents as they are read,
	// so that Size means nothing: files of /proc report none, those of /sys a
	// page. Read to the end, which may never come: where a read waits, it has
	// deadlines and ends with Close.
	Generated bool

	inode uint64
}

// Open opens the regular file at path for reading, links followed. A directory
// is ErrIsDirectory; anything else is ErrNotRegular and not opened.
func (v *View) Open(path string) (f *File, err error) {
	path, err = v.User.Resolve(path)
	if err != nil {
		return nil, err
	}
	err = v.Do(func() error {
		f, err = v.openFile(path)
		return failed("open", path, err)
	})
	return f, err
}

func (v *View) openFile(path string) (*File, error) {
	fd, st, err := v.pin(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := checkRegular(st.Mode); err != nil {
		return nil, err
	}
	flags, gen := unix.O_RDONLY, generated(fd, &st)
	if gen {
		// Some of them wait for news: such a read can then be given a deadline,
		// and ends when the file is closed.
		flags |= unix.O_NONBLOCK
	}
	file, err := reopen(fd, path, flags)
	if err != nil {
		return nil, err
	}
	return &File{
		File:      file,
		Path:      path,
		Size:      st.Size,
		ModTime:   time.Unix(st.Mtim.Unix()),
		Generated: gen,
		inode:     st.Ino,
	}, nil
}

// ETag is a strong entity tag of the contents: inode, size and time of the last
// change in nanoseconds. It is empty for a generated file, which has no two
// equal moments. A change within one tick of the kernel's clock that keeps
// the size is not seen (Linux 6.13 made the tick finer for files whose times
// are looked at).
func (f *File) ETag() string {
	if f.Generated {
		return ""
	}
	return fmt.Sprintf(`"%x-%x-%x"`, f.inode, f.Size, f.ModTime.UnixNano())
}

// checkRegular says what a file of this mode is if not regular.
func checkRegular(mode uint32) error {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return nil
	case unix.S_IFDIR:
		return ErrIsDirectory
	default:
		return ErrNotRegular
	}
}

// reopen opens the pinned file fd, and no other, with the permission checks of
// an ordinary open. name is for messages.
func reopen(fd int, name string, flags int) (*os.File, error) {
	opened, err := linux.OpenAt(unix.AT_FDCWD, procPath(fd), flags, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(opened), name), nil
}

// openEntry opens the entry name in dirfd for reading and tells what it opened:
// a regular file or a directory; any other kind is held on to, unopened (O_PATH).
// No link is followed. Whoever looked at the name before, and works on what this
// tells, works on one file, whoever swaps names meanwhile.
func openEntry(dirfd int, name string) (*os.File, unix.Stat_t, error) {
	fd, st, err := pin(dirfd, name)
	if err != nil {
		return nil, st, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
		defer unix.Close(fd)
		f, err := reopen(fd, name, unix.O_RDONLY)
		if err == nil {
			err = unix.Fstat(int(f.Fd()), &st) // networks tell the size at the open
		}
		if err != nil {
			_ = f.Close()
			return nil, st, err
		}
		return f, st, nil
	}
	return os.NewFile(uintptr(fd), name), st, nil
}

// generated asks the filesystem of fd only where the size leaves doubt.
func generated(fd int, st *unix.Stat_t) bool {
	if st.Size != 0 && st.Size != int64(os.Getpagesize()) {
		return false
	}
	var fsys unix.Statfs_t
	if err := unix.Fstatfs(fd, &fsys); err != nil {
		return false
	}
	switch fsys.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC:
		return true
	case unix.FUSE_SUPER_MAGIC:
		// A FUSE filesystem may do the same with direct_io.
		return st.Size == 0
	}
	return false
}
