package filesystem

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// newFileMode is the mode of new files, before the umask.
const newFileMode = 0o666

// Upload is how contents are written.
type Upload struct {
	// Size is how many bytes the source yields, negative if that is unknown.
	// A size that does not fit is ErrNoSpace before anything is touched.
	Size int64

	// Metadata replaces what the file had.
	Metadata Metadata

	// Atomic writes beside the target and renames, so that the file is seen
	// whole, before or after, or not at all. It keeps mode and owner.
	Atomic bool
}

// Write makes src the contents of the file at path and describes the file. A
// new file, like its missing parents, belongs to the user. An existing one
// stays the same file: inode, links and mode; its owner becomes the user where
// the view allows that. Links are followed; what is not a regular file is
// refused unopened.
//
// Owner and metadata are right before the first byte arrives. A watcher sees a
// small new file as CREATE, CHMOD, WRITE. When src breaks off (ErrSource) the
// file keeps what came before, and Resume can go on from there.
func (v *View) Write(path string, src io.Reader, u Upload) (e Entry, err error) {
	path, err = v.User.Resolve(path)
	if err != nil {
		return Entry{}, err
	}
	if err := u.Metadata.Validate(); err != nil {
		return Entry{}, err
	}
	err = v.Do(func() error {
		if u.Atomic {
			e, err = v.writeAtomic(path, src, u)
		} else {
			e, err = v.writeInPlace(path, src, u)
		}
		return failed("write", path, err)
	})
	return e, err
}

func (v *View) writeInPlace(path string, src io.Reader, u Upload) (Entry, error) {
	var kept Metadata
	f, old, err := v.openExisting(path, func(st *unix.Stat_t) (int64, error) {
		// Truncation gives the old blocks back.
		return u.Size - st.Blocks*blockBytes, nil
	})
	switch {
	case err == nil:
		if kept, err = v.prepare(f, old, u.Metadata); err == nil {
			err = f.Truncate(0)
		}
		if err != nil {
			_ = f.Close()
			return Entry{}, err
		}
	case errors.Is(err, unix.ENOENT):
		if f, kept, err = v.create(path, u); err != nil {
			return Entry{}, err
		}
	default:
		return Entry{}, err
	}
	return v.finish(f, path, src, u, kept)
}

// Resume writes src into the file at path from offset on, to continue an upload
// that broke off. The file is made if it is missing. It may not be shorter than
// offset: ErrOffsetPastEnd. What lies beyond the last byte written stays.
// Metadata is replaced only where u has some; Atomic does not apply.
func (v *View) Resume(path string, offset int64, src io.Reader, u Upload) (e Entry, err error) {
	path, err = v.User.Resolve(path)
	if err != nil {
		return Entry{}, err
	}
	if err := u.Metadata.Validate(); err != nil {
		return Entry{}, err
	}
	err = v.Do(func() error {
		e, err = v.resume(path, offset, src, u)
		return failed("write", path, err)
	})
	return e, err
}

func (v *View) resume(path string, offset int64, src io.Reader, u Upload) (Entry, error) {
	var kept Metadata
	f, old, err := v.openExisting(path, func(st *unix.Stat_t) (int64, error) {
		if offset > st.Size {
			return 0, ErrOffsetPastEnd
		}
		return offset + u.Size - max(st.Size, st.Blocks*blockBytes), nil
	})
	switch {
	case err == nil:
		if len(u.Metadata) > 0 {
			kept, err = v.prepare(f, old, u.Metadata)
		} else {
			kept = readMetadata(new(linux.Xattrs), int(f.Fd()), "")
		}
		if err == nil {
			_, err = f.Seek(offset, io.SeekStart)
		}
		if err != nil {
			_ = f.Close()
			return Entry{}, err
		}
	case errors.Is(err, unix.ENOENT) && offset > 0:
		return Entry{}, ErrOffsetPastEnd
	case errors.Is(err, unix.ENOENT):
		if f, kept, err = v.create(path, u); err != nil {
			return Entry{}, err
		}
	default:
		return Entry{}, err
	}
	return v.finish(f, path, src, u, kept)
}

// finish fills f, which it closes and which has the metadata m, and describes
// it.
func (v *View) finish(f *os.File, path string, src io.Reader, u Upload, m Metadata) (e Entry, err error) {
	err = receive(f, src, u.Size)
	if err == nil {
		e, err = v.entryOf(f, path, m)
	}
	// Network filesystems report a full disk at the close.
	if closed := f.Close(); err == nil {
		err = closed
	}
	return e, err
}

// openExisting opens the regular file at path for writing, if need, asked for
// the bytes that have to be free, does not object and they are free. Nothing
// about the file has changed yet; old is what it was like.
func (v *View) openExisting(path string, need func(*unix.Stat_t) (int64, error)) (f *os.File, old unix.Stat_t, err error) {
	// Without O_CREAT: in a sticky directory that would keep even root out of
	// another user's file (fs.protected_regular in proc_sys_fs(5)).
	fd, old, err := v.pin(path)
	if err != nil {
		return nil, old, err
	}
	defer unix.Close(fd)
	if err := checkRegular(old.Mode); err != nil {
		return nil, old, err
	}
	bytes, err := need(&old)
	if err != nil {
		return nil, old, err
	}
	if err := v.room(fd, bytes); err != nil {
		return nil, old, err
	}
	f, err = reopen(fd, path, unix.O_WRONLY)
	return f, old, err
}

// prepare gives the existing file f, which was like old, to the user, with the
// metadata m, and answers what was kept of that.
func (v *View) prepare(f *os.File, old unix.Stat_t, m Metadata) (kept Metadata, err error) {
	fd := int(f.Fd())
	if !v.limited() && (old.Uid != v.User.UID || old.Gid != v.User.GID) {
		if err := chown(fd, int(v.User.UID), int(v.User.GID)); err != nil {
			return nil, err
		}
	}
	if err := clearMetadata(fd); err != nil {
		return nil, err
	}
	return addMetadata(fd, m)
}

// create makes the file at path, and its missing parents, with owner and
// metadata, and answers what was kept of that.
//
// A watcher is to see one CHMOD between CREATE and WRITE. Without metadata that
// is the change of owner, the cheapest way to the right owner, too; where the
// user makes the file itself, a change to the same owner. With metadata it is
// setting the attributes, and the file is made as the user's own. The kernel
// merges what several keys raise as long as nobody has read the first
// (inotify(7)).
func (v *View) create(path string, u Upload) (f *os.File, kept Metadata, err error) {
	if err := v.roomFor(path, u.Size); err != nil {
		return nil, nil, err
	}
	open := func() error {
		f, err = v.createEmpty(path)
		return err
	}
	if len(u.Metadata) == 0 {
		err = open()
	} else {
		err = v.owned(open)
	}
	if err != nil {
		return nil, nil, err
	}
	kept, err = addMetadata(int(f.Fd()), u.Metadata)
	if err == nil && kept == nil {
		gid := int(v.User.GID)
		if v.limited() {
			gid = -1 // the directory may have chosen the group (set-group-ID)
		}
		err = chown(int(f.Fd()), int(v.User.UID), gid)
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return f, kept, nil
}

// createEmpty makes the file at path. Something that took the name meanwhile is
// opened if it is a regular file; so is the target of a link that led nowhere.
func (v *View) createEmpty(path string) (*os.File, error) {
	const flags = unix.O_WRONLY | unix.O_CREAT
	fd, err := v.open(path, flags|unix.O_EXCL, newFileMode)
	if errors.Is(err, unix.ENOENT) {
		p, missing := v.pinNewPlace(path)
		if missing != nil {
			return nil, missing
		}
		defer p.close()
		fd, err = v.openAt(p.dir, p.name, flags|unix.O_EXCL, newFileMode)
	}
	if err == nil {
		return os.NewFile(uintptr(fd), path), nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	// O_NONBLOCK: a FIFO that appears here is ENXIO or refused below.
	fd, err = v.open(path, flags|unix.O_NONBLOCK, newFileMode)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		err = checkRegular(st.Mode)
	}
	if err == nil && st.Size > 0 {
		err = f.Truncate(0)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// chown changes the owner of the open file fd. Where a filesystem keeps no
// owners (FAT, many of FUSE) there is nothing to change.
func chown(fd, uid, gid int) error {
	err := unix.Fchown(fd, uid, gid)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return err
}

// entryOf describes the open file f, known as path, which has the metadata m.
func (v *View) entryOf(f *os.File, path string, m Metadata) (Entry, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Entry{}, err
	}
	e := v.describer().fromStat(path, &st)
	e.Metadata = m
	return e, nil
}
