package filesystem

import (
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// staged is a file on its way to a target beside it: named, but by nothing that
// a client would ask for. It ends with commit or discard.
type staged struct {
	*os.File
	dirfd        int
	temp, target string   // names in dirfd
	metadata     Metadata // what was kept of it
}

// tempPrefix starts the names of files and trees that are not complete yet.
const tempPrefix = ".envd-"

func tempName() string { return tempPrefix + rand.Text() }

// stage makes an empty file to replace the regular file at path, or to become
// it. It has the mode, the owner and the attributes of the old file, or belongs
// to the user, and metadata m. need bytes must fit beside the old file.
//
// The link at path, if it is one, stays: its target is replaced. A link that
// leads nowhere is replaced itself.
func (v *View) stage(path string, need int64, m Metadata) (s *staged, err error) {
	err = whileMoved(1000, func() error {
		s, err = v.tryStage(path, need, m)
		return err
	})
	return s, err
}

// tryStage is stage, but ErrMoved if the old file was replaced meanwhile.
func (v *View) tryStage(path string, need int64, m Metadata) (*staged, error) {
	var p place
	oldfd, old, err := v.pin(path)
	switch {
	case err == nil:
		defer unix.Close(oldfd)
		if err := checkRegular(old.Mode); err != nil {
			return nil, err
		}
		// To replace a file is to write to it: who may not do that may not
		// do this, though the directory would allow it.
		if err := unix.Faccessat2(oldfd, "", unix.W_OK, unix.AT_EMPTY_PATH|unix.AT_EACCESS); err != nil {
			return nil, err
		}
		if path, err = pathOf(oldfd); err != nil {
			return nil, err
		}
		if p, err = v.placeOf(path, &old); err != nil {
			return nil, err
		}
	case errors.Is(err, unix.ENOENT):
		oldfd = -1
		if err := v.roomFor(path, need); err != nil {
			return nil, err
		}
		if p, err = v.pinNewPlace(path); err != nil {
			return nil, err
		}
	default:
		return nil, err
	}
	s := &staged{dirfd: p.dir, temp: tempName(), target: p.name}
	if err := v.room(p.dir, need); err != nil {
		return nil, s.discard(err)
	}
	if err := v.owned(s.create); err != nil {
		return nil, s.discard(err)
	}
	if oldfd >= 0 {
		if err := s.inherit(oldfd, &old); err != nil {
			return nil, s.discard(err)
		}
	}
	if s.metadata, err = addMetadata(int(s.Fd()), m); err != nil {
		return nil, s.discard(err)
	}
	return s, nil
}

func (s *staged) create() error {
	fd, err := linux.OpenAt(s.dirfd, s.temp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, newFileMode)
	if err == nil {
		s.File = os.NewFile(uintptr(fd), s.target)
	}
	return err
}

// inherit takes over owner, mode and attributes of the old file, except what
// any write to that would have cleared or replaced: set-ID bits, file
// capabilities, metadata.
func (s *staged) inherit(oldfd int, old *unix.Stat_t) error {
	fd := int(s.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Uid != old.Uid || st.Gid != old.Gid {
		if err := unix.Fchown(fd, int(old.Uid), int(old.Gid)); err != nil {
			return err
		}
	}
	err := copyXattrs(fd, oldfd, func(name string) bool {
		return !strings.HasPrefix(name, metadataPrefix) && !strings.HasPrefix(name, "security.")
	})
	if err != nil {
		return err
	}
	return unix.Fchmod(fd, old.Mode&uint32(fs.ModePerm))
}

// commit makes the staged file the target. It is on the disk first, so that
// after a crash the name leads to the old or to the new contents.
func (s *staged) commit() error {
	if err := s.Sync(); err != nil {
		return s.discard(err)
	}
	if err := unix.Renameat(s.dirfd, s.temp, s.dirfd, s.target); err != nil {
		return s.discard(err)
	}
	s.temp = ""
	return s.discard(nil)
}

// discard releases s, removes the file unless it was committed, and returns
// err.
func (s *staged) discard(err error) error {
	if s.File != nil {
		if closed := s.Close(); err == nil {
			err = closed
		}
		if s.temp != "" {
			_ = unix.Unlinkat(s.dirfd, s.temp, 0)
		}
	}
	_ = unix.Close(s.dirfd)
	return err
}

// writeAtomic is Write for an atomic upload.
func (v *View) writeAtomic(path string, src io.Reader, u Upload) (Entry, error) {
	s, err := v.stage(path, u.Size, u.Metadata)
	if err != nil {
		return Entry{}, err
	}
	if err := receive(s.File, src, u.Size); err != nil {
		return Entry{}, s.discard(err)
	}
	e, err := v.entryOf(s.File, path, s.metadata)
	if err != nil {
		return Entry{}, s.discard(err)
	}
	return e, s.commit()
}

// copyXattrs copies the attributes that want names from the file src, which
// may be pinned only, to the open file dst. What the filesystem or the rights
// of the thread do not allow is left out.
func copyXattrs(dst, src int, want func(name string) bool) error {
	x := linux.Xattrs{Follow: true}
	from := procPath(src)
	return x.Each(unix.AT_FDCWD, from, func(name string) error {
		if !want(name) {
			return nil
		}
		value, err := x.Value(unix.AT_FDCWD, from, name)
		if err == nil {
			err = unix.Fsetxattr(dst, name, value, 0)
		}
		switch {
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENODATA):
			return nil
		}
		return err
	})
}
