package filesystem

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// Unpack makes the entries of the tar archive r below the directory at path,
// which is made if it is missing. Everything made belongs to the user; modes
// (set-ID and sticky bits only for root), modification times, links and the
// attributes of users are taken from the archive. A file or link replaces what
// has its name, except a directory. Directories are merged, and one that was
// there keeps its mode.
//
// Nothing outside the directory is touched: absolute names and names with ".."
// are refused, and so is a symbolic link on the way that leads out, whoever put
// it there and when. Devices are refused. Those are ErrArchive, as is what is no
// archive. What was unpacked before an error stays.
func (v *View) Unpack(dir string, r io.Reader) error {
	dir, err := v.User.Resolve(dir)
	if err != nil {
		return err
	}
	return v.Do(func() error {
		return v.owned(func() error {
			root, err := v.makeDirs(dir)
			if err != nil {
				return failed("unpack", dir, err)
			}
			defer unix.Close(root)
			u := unpacker{root: root, uid: v.User.UID, modes: 0o777, made: make(map[string]*madeDir)}
			if v.User.UID == 0 {
				u.modes = 0o7777
			}
			return u.unpack(r)
		})
	})
}

// unpacker unpacks one archive below the pinned directory root.
type unpacker struct {
	root  int
	uid   uint32 // owner of what is made
	modes int64  // bits of modes that are taken over

	// made are the directories that were not there before. They get mode and
	// time last: a mode may forbid to make entries, and entries change the time.
	made map[string]*madeDir
}

// madeDir is a directory that the archive made. Another that has its name by
// now is none.
type madeDir struct {
	id   inode
	last *final // nil unless the archive tells
}

// final is what an entry has in the end. The rest of its header may be a
// megabyte.
type final struct {
	mode    int64
	modTime time.Time
}

func (u *unpacker) unpack(r io.Reader) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		switch {
		case errors.Is(err, io.EOF):
			return u.finishDirectories()
		case errors.Is(err, tar.ErrHeader):
			return fmt.Errorf("unpack: %w: %w", ErrArchive, err)
		case err != nil:
			return fmt.Errorf("unpack: %w: %w", ErrSource, err)
		}
		name, err := entryName(h.Name)
		if err == nil && name != "." {
			err = u.entry(t, h, name)
		}
		if err != nil {
			return failed("unpack", h.Name, err)
		}
	}
}

// entryName is the clean, relative name of an entry; "." is the root itself.
func entryName(name string) (string, error) {
	switch {
	case name == "":
		return "", fmt.Errorf("%w: empty name", ErrArchive)
	case strings.HasPrefix(name, "/"):
		return "", fmt.Errorf("%w: absolute name", ErrArchive)
	case slices.Contains(strings.Split(name, "/"), ".."):
		return "", fmt.Errorf("%w: name contains \"..\"", ErrArchive)
	case strings.IndexByte(name, 0) >= 0:
		return "", fmt.Errorf("%w: name contains a zero byte", ErrArchive)
	}
	return path.Clean(name), nil
}

// entry makes one entry. Its last step is always on a name in a pinned
// directory and never follows a link at that name.
func (u *unpacker) entry(t *tar.Reader, h *tar.Header, name string) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeCont, tar.TypeGNUSparse:
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeChar, tar.TypeBlock:
		return fmt.Errorf("%w: device nodes are not unpacked", ErrArchive)
	default:
		return fmt.Errorf("%w: unknown kind of entry %q", ErrArchive, h.Typeflag)
	}
	parent, err := u.parent(name)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	base := path.Base(name)
	if h.Typeflag == tar.TypeDir {
		return u.directory(parent, name, h)
	}
	if err := unix.Unlinkat(parent, base, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, parent, base); err != nil {
			return err
		}
		return setModTime(parent, base, unix.AT_SYMLINK_NOFOLLOW, h.ModTime)
	case tar.TypeLink:
		return u.link(parent, base, h.Linkname)
	case tar.TypeFifo:
		return unix.Mknodat(parent, base, unix.S_IFIFO|uint32(h.Mode&0o777), 0)
	default:
		return u.regular(t, h, parent, base)
	}
}

func (u *unpacker) regular(t *tar.Reader, h *tar.Header, parent int, base string) error {
	fd, err := linux.OpenAt(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, newFileMode)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	_, err = pump(f, t)
	if err == nil {
		err = setAttributes(fd, h)
	}
	if err == nil {
		err = u.finish(fd, &final{h.Mode, h.ModTime})
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// link makes base in parent a further name of an entry unpacked earlier.
func (u *unpacker) link(parent int, base, target string) error {
	target, err := entryName(target)
	if err != nil {
		return err
	}
	from, err := u.beneath(path.Dir(target))
	if err == nil {
		defer unix.Close(from)
		err = unix.Linkat(from, path.Base(target), parent, base, 0)
	}
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: link to a missing entry %q", ErrArchive, target)
	}
	return err
}

// directory makes the directory name, whose parent is pinned, unless it is there
// or a link to one is: where that leads is for beneath to judge when it is used.
// A directory that was there before the archive keeps its mode and time. h is nil
// for one that the archive does not mention.
func (u *unpacker) directory(parent int, name string, h *tar.Header) error {
	base := path.Base(name)
	err := unix.Mkdirat(parent, base, newDirMode)
	if err == nil {
		return u.describe(parent, name, h)
	}
	var st unix.Stat_t
	if !errors.Is(err, unix.EEXIST) || statAt(parent, base, &st) != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if _, ok := u.made[name]; ok {
			return u.describe(parent, name, h)
		}
		return nil
	case unix.S_IFLNK:
		return nil
	}
	return ErrNotDirectory
}

// describe gives the directory name, which this archive made, now or earlier, the
// attributes of its header, if it has one, and notes the rest.
func (u *unpacker) describe(parent int, name string, h *tar.Header) error {
	dir, err := openDir(parent, path.Base(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return err
	}
	made := u.made[name]
	if made == nil && u.fresh(dir, &st) {
		made = &madeDir{id: inodeOf(&st)}
		u.made[name] = made
	}
	if made == nil || made.id != inodeOf(&st) {
		return nil // it was there before
	}
	if h == nil {
		return nil
	}
	made.last = &final{h.Mode, h.ModTime}
	return setAttributes(int(dir.Fd()), h)
}

// fresh tells whether dir may be what has just been made under its name: who may
// swap names there can have put another in its place. One that belongs to the
// user and holds nothing is as good.
func (u *unpacker) fresh(dir *os.File, st *unix.Stat_t) bool {
	_, err := dir.Readdirnames(1)
	return st.Uid == u.uid && errors.Is(err, io.EOF)
}

// parent pins the directory that name is in, and makes it if it is missing.
func (u *unpacker) parent(name string) (int, error) {
	dir := path.Dir(name)
	fd, err := u.beneath(dir)
	if !errors.Is(err, unix.ENOENT) || dir == "." {
		return fd, err
	}
	above, err := u.parent(dir)
	if err != nil {
		return -1, err
	}
	err = u.directory(above, dir, nil)
	_ = unix.Close(above)
	if err != nil {
		return -1, err
	}
	fd, err = u.beneath(dir)
	if errors.Is(err, unix.ENOENT) {
		err = fmt.Errorf("%w: a link on the way leads nowhere: %w", ErrArchive, err)
	}
	return fd, err
}

// beneath pins the directory at name, which must be below the root whatever
// links lead there.
func (u *unpacker) beneath(name string) (int, error) {
	return u.openBeneath(name, unix.O_PATH|unix.O_DIRECTORY)
}

func (u *unpacker) openBeneath(name string, flags int) (int, error) {
	fd, err := linux.OpenBeneath(u.root, name, flags, 0)
	switch {
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EAGAIN):
		return -1, fmt.Errorf("%w: a link on the way leads out of the directory: %w", ErrArchive, err)
	}
	return fd, err
}

// finishDirectories gives the directories what entry left, the deepest first.
func (u *unpacker) finishDirectories() error {
	names := slices.Sorted(maps.Keys(u.made))
	for _, name := range slices.Backward(names) {
		if err := u.finishDirectory(name, u.made[name]); err != nil {
			return failed("unpack", name, err)
		}
	}
	return nil
}

func (u *unpacker) finishDirectory(name string, made *madeDir) error {
	if made.last == nil {
		return nil
	}
	fd, err := u.openBeneath(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if made.id != inodeOf(&st) {
		return nil // it was there before
	}
	return u.finish(fd, made.last)
}

// setAttributes gives the open file fd the attributes of users that h has.
func setAttributes(fd int, h *tar.Header) error {
	for _, record := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		name, ok := strings.CutPrefix(record, paxXattr)
		if !ok || !strings.HasPrefix(name, userXattr) {
			continue
		}
		err := unix.Fsetxattr(fd, name, []byte(h.PAXRecords[record]), 0)
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("set attribute %q: %w", name, err)
		}
	}
	return nil
}

// finish gives the open file fd its mode and time.
func (u *unpacker) finish(fd int, last *final) error {
	if err := unix.Fchmod(fd, uint32(last.mode&u.modes)); err != nil {
		return err
	}
	return setModTime(fd, "", unix.AT_EMPTY_PATH, last.modTime)
}

// setModTime leaves the time of the last access alone.
func setModTime(dirfd int, name string, flags int, t time.Time) error {
	if t.IsZero() {
		return nil
	}
	mtime, err := unix.TimeToTimespec(t)
	if err != nil {
		return nil //nolint:nilerr // a year that the kernel does not know
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}
	return unix.UtimesNanoAt(dirfd, name, times, flags)
}
