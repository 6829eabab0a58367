package filesystem

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// paxXattr starts the PAX records of extended attributes, as GNU tar, bsdtar and
// star write them.
const paxXattr = "SCHILY.xattr."

// userXattr starts the attributes that a user may set and that an archive
// carries.
const userXattr = "user."

// Pack writes the tree below the directory at path to w as a tar archive in PAX
// format: names relative to the directory, in the order of filepath.WalkDir;
// modes, owners by name and number, modification times, symbolic links, further
// names of a file as hard links, and the attributes of users, metadata among
// them, unless they have "=" in their name. Sockets have no place in an archive. Memory does not grow with the
// tree, but for files that have several names.
//
// Nothing is written before the directory was opened. Entries that vanish are
// left out. Anything else that cannot be read, or a file that gets shorter
// while it is, is an error, and the archive lacks its end.
func (v *View) Pack(w io.Writer, path string) error {
	path, err := v.User.Resolve(path)
	if err != nil {
		return err
	}
	return v.Do(func() error {
		dir, err := v.openDir(path)
		if err != nil {
			return failed("archive", path, err)
		}
		defer dir.Close()
		p := packer{w: tar.NewWriter(w), describer: v.describer(), packed: make(map[inode]string)}
		if err := p.directory(dir, ""); err != nil {
			return failed("archive", path, err)
		}
		return failed("archive", path, p.w.Close())
	})
}

// packer writes one archive.
type packer struct {
	*describer
	w *tar.Writer

	// packed are the files with several names that the archive has, by the
	// name it has them under.
	packed map[inode]string
}

// directory packs what is in dir, whose path in the archive is prefix with a
// slash at its end.
func (p *packer) directory(dir *os.File, prefix string) error {
	if len(prefix) > pathMax {
		return unix.ENAMETOOLONG // and a descriptor is held for each level
	}
	names, err := sortedNames(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		err := p.entry(int(dir.Fd()), name, prefix+name)
		if err != nil && !errors.Is(err, errVanished) {
			return err
		}
	}
	return nil
}

// errVanished is an entry that is gone before its header was written.
var errVanished = errors.New("entry vanished")

func vanished(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return errVanished
	}
	return err
}

// entry packs the file name in dirfd as path.
func (p *packer) entry(dirfd int, name, path string) error {
	f, st, err := openEntry(dirfd, name)
	if err != nil {
		return vanished(err)
	}
	defer f.Close()
	h := p.header(path, &st)
	if first, ok := p.packed[inodeOf(&st)]; ok {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return p.w.WriteHeader(h)
	}
	if err := p.contents(f, h, &st); err != nil {
		return err
	}
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		p.packed[inodeOf(&st)] = path
	}
	return nil
}

// contents writes the header h of the file f, and what it holds.
func (p *packer) contents(f *os.File, h *tar.Header, st *unix.Stat_t) (err error) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return p.regular(f, h, st.Size)
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		p.attributes(h, int(f.Fd()))
		if err := p.w.WriteHeader(h); err != nil {
			return err
		}
		return p.directory(f, h.Name)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = readLink(int(f.Fd()), ""); err != nil {
			return err
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default:
		return nil
	}
	return p.w.WriteHeader(h)
}

// regular packs the size bytes that the file had when it was opened. What is
// appended later is left for the next archive.
func (p *packer) regular(f *os.File, h *tar.Header, size int64) error {
	h.Typeflag, h.Size = tar.TypeReg, size
	p.attributes(h, int(f.Fd()))
	if err := p.w.WriteHeader(h); err != nil {
		return err
	}
	n, err := pump(p.w, io.LimitReader(f, size))
	if err == nil && n < size {
		err = fmt.Errorf("%w: %s got shorter while it was read", ErrSource, h.Name)
	}
	return err
}

// header is what a header has for every kind of entry.
func (p *packer) header(path string, st *unix.Stat_t) *tar.Header {
	return &tar.Header{
		Format:  tar.FormatPAX, // keeps fractions of seconds
		Name:    path,
		Mode:    int64(st.Mode & 0o7777),
		Uid:     int(st.Uid),
		Gid:     int(st.Gid),
		Uname:   owner(p.users, st.Uid, p.view.Names, Names.UserName),
		Gname:   owner(p.groups, st.Gid, p.view.Names, Names.GroupName),
		ModTime: time.Unix(st.Mtim.Unix()),
	}
}

// attributes adds the attributes of users that the open file fd has.
func (p *packer) attributes(h *tar.Header, fd int) {
	path := procPath(fd)
	_ = p.target.Each(unix.AT_FDCWD, path, func(name string) error {
		// A record's name ends with the first "=" (pax in POSIX.1-2001).
		if !strings.HasPrefix(name, userXattr) || strings.Contains(name, "=") {
			return nil
		}
		value, err := p.target.Value(unix.AT_FDCWD, path, name)
		if err != nil {
			return nil //nolint:nilerr // it was removed meanwhile
		}
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords[paxXattr+name] = string(value)
		return nil
	})
}
