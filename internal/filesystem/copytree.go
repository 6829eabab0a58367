package filesystem

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// copyTree copies what is at from to the new name to. Nobody else may write to
// the directory of to, unless the view is limited to its user's own reach: what
// is made there is found again by its name. The answer is what was copied.
func (v *View) copyTree(from, to place) (inode, error) {
	c := treeCopy{to: to.dir, made: make(map[inode]string), lenient: v.limited()}
	return c.copy(from.dir, from.name, to.dir, to.name, to.name)
}

// inode identifies a file on this machine.
type inode struct{ dev, ino uint64 }

func inodeOf(st *unix.Stat_t) inode { return inode{st.Dev, st.Ino} }

// treeCopy copies a tree that may have several names for one file.
type treeCopy struct {
	to int // directory that the copy is made in

	// made are the files with several names that are copied, as paths in to.
	made map[inode]string

	// lenient leaves owners that the thread may not give away.
	lenient bool
}

// copy copies the file name in from to newName in to, which is path from the
// root of the copy. Contents and attributes come from one open file: who swaps
// names meanwhile gets nothing under another's mode or owner.
func (c *treeCopy) copy(from int, name string, to int, newName, path string) (id inode, err error) {
	src, st, err := openEntry(from, name)
	if err != nil {
		return id, inTree(name, err)
	}
	defer src.Close()
	kind := st.Mode & unix.S_IFMT
	id = inodeOf(&st)
	if first, ok := c.made[id]; ok {
		return id, inTree(name, unix.Linkat(c.to, first, to, newName, 0))
	}
	switch kind {
	case unix.S_IFDIR:
		err = c.directory(src, to, newName, path, &st)
	case unix.S_IFREG:
		err = c.regular(src, to, newName, &st)
	default:
		err = c.special(src, to, newName, &st)
	}
	if err == nil && kind != unix.S_IFDIR && st.Nlink > 1 {
		c.made[id] = path
	}
	return id, inTree(name, err)
}

func (c *treeCopy) directory(src *os.File, to int, newName, path string, st *unix.Stat_t) error {
	if len(path) > pathMax {
		return unix.ENAMETOOLONG // and two descriptors are held for each level
	}
	// Nobody else looks in before modes and owners are right.
	if err := unix.Mkdirat(to, newName, 0o700); err != nil {
		return err
	}
	dst, err := openDir(to, newName)
	if err != nil {
		return err
	}
	defer dst.Close()
	names, err := sortedNames(src)
	if err != nil {
		return err
	}
	for _, child := range names {
		_, err := c.copy(int(src.Fd()), child, int(dst.Fd()), child, path+"/"+child)
		if errors.Is(err, unix.ENOENT) && !exists(int(src.Fd()), child) {
			continue // vanished meanwhile
		}
		if err != nil {
			return err
		}
	}
	return c.attributes(int(dst.Fd()), int(src.Fd()), st)
}

func exists(dirfd int, name string) bool {
	var st unix.Stat_t
	return statAt(dirfd, name, &st) == nil
}

func (c *treeCopy) regular(src *os.File, to int, newName string, st *unix.Stat_t) error {
	fd, err := linux.OpenAt(to, newName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(fd), newName)
	err = copyData(dst, src, st.Size)
	if err == nil {
		err = c.attributes(int(dst.Fd()), int(src.Fd()), st)
	}
	if closed := dst.Close(); err == nil {
		err = closed
	}
	return err
}

// special makes what is not opened: a link, FIFO, socket or device.
func (c *treeCopy) special(src *os.File, to int, newName string, st *unix.Stat_t) error {
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		target, err := readLink(int(src.Fd()), "")
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, to, newName); err != nil {
			return err
		}
	} else if err := unix.Mknodat(to, newName, st.Mode, int(st.Rdev)); err != nil {
		return err
	}
	dst, made, err := pin(to, newName)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	if made.Mode&unix.S_IFMT != st.Mode&unix.S_IFMT {
		return fmt.Errorf("%w: its copy became another file", unix.ESTALE)
	}
	return c.pinnedAttributes(dst, st)
}

// attributes gives the open file dst what src has, which st describes. The
// order matters: a new owner clears set-ID bits and file capabilities, and
// everything changes times.
func (c *treeCopy) attributes(dst, src int, st *unix.Stat_t) error {
	mode, err := c.own(dst, st)
	if err != nil {
		return err
	}
	if err := copyXattrs(dst, src, func(string) bool { return true }); err != nil {
		return err
	}
	if err := unix.Fchmod(dst, mode); err != nil {
		return err
	}
	return setTimes(dst, st)
}

// pinnedAttributes is attributes for what cannot be opened, but pinned.
func (c *treeCopy) pinnedAttributes(dst int, st *unix.Stat_t) error {
	mode, err := c.own(dst, st)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK { // links have no mode
		if err := unix.Chmod(procPath(dst), mode); err != nil {
			return err
		}
	}
	return setTimes(dst, st)
}

// own gives dst, open or pinned, its owner and says which mode fits that: the
// set-ID bits go with an owner who could not be kept.
func (c *treeCopy) own(dst int, st *unix.Stat_t) (mode uint32, err error) {
	err = unix.Fchownat(dst, "", int(st.Uid), int(st.Gid), unix.AT_EMPTY_PATH)
	if c.lenient && errors.Is(err, unix.EPERM) {
		return st.Mode & 0o1777, nil
	}
	return st.Mode & 0o7777, err
}

// setTimes is for what is open or pinned.
func setTimes(fd int, st *unix.Stat_t) error {
	return unix.UtimesNanoAt(fd, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH)
}

// copyData copies size bytes and keeps the holes between them.
func copyData(dst, src *os.File, size int64) error {
	for off := int64(0); off < size; {
		data, err := src.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole up to the end
		}
		if err != nil {
			return err
		}
		hole, err := src.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if off, err = copyPart(dst, src, data, min(hole, size)); err != nil {
			return err
		}
	}
	return dst.Truncate(size)
}

// copyPart copies the bytes from start to end. A source that got shorter
// meanwhile is an error: the rest of it is somewhere no longer.
func copyPart(dst, src *os.File, start, end int64) (int64, error) {
	if _, err := src.Seek(start, io.SeekStart); err != nil {
		return 0, err
	}
	if _, err := dst.Seek(start, io.SeekStart); err != nil {
		return 0, err
	}
	return end, receive(dst, io.LimitReader(src, end-start), end-start)
}

// readLink is readlink(2) of name in dirfd.
func readLink(dirfd int, name string) (string, error) {
	var buf [pathMax]byte
	n, err := unix.Readlinkat(dirfd, name, buf[:])
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// inTree adds the name in a tree that err is about.
func inTree(name string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return err
	}
	return &fs.PathError{Op: "copy", Path: name, Err: err}
}
