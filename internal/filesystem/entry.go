package filesystem

import (
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// Type is what an entry is to a client.
type Type uint8

// The types of entries.
const (
	TypeUnknown Type = iota // neither of the others, or a link that leads nowhere
	TypeFile
	TypeDirectory
)

// Entry describes one name in a directory. Names, paths and link targets are
// the kernel's bytes and need not be UTF-8.
type Entry struct {
	Name, Path string

	// Type and Perm, the permission bits, are those of the file that the entry
	// leads to: for a symbolic link the target's.
	Type Type
	Perm uint32

	// Mode, Size, ModTime and the owners are those of the entry itself.
	// Mode.String is what clients know as permissions.
	Mode         fs.FileMode
	Size         int64
	ModTime      time.Time
	Owner, Group string // names, or numbers where there is no name

	// SymlinkTarget is empty unless the entry is a symbolic link: then it is
	// the path at the end of all links, or the entry's own where it leads
	// nowhere.
	SymlinkTarget string

	// Metadata is that of the file that the entry leads to; nil when there is
	// none.
	Metadata Metadata
}

// Stat describes the entry at path. Below a file there is nothing: that is
// fs.ErrNotExist too.
func (v *View) Stat(path string) (e Entry, err error) {
	path, err = v.User.Resolve(path)
	if err != nil {
		return Entry{}, err
	}
	err = v.Do(func() error {
		p, err := v.locate(path)
		if err == nil {
			defer p.close()
			e, err = v.describer().entry(p.dir, p.name, path)
		}
		return failed("stat", path, belowFile(err))
	})
	return e, err
}

// describer makes entries and remembers the owners it has met. It serves one
// operation.
type describer struct {
	view          *View
	users, groups map[uint32]string
	own, target   linux.Xattrs
}

func (v *View) describer() *describer {
	return &describer{
		view:   v,
		users:  make(map[uint32]string),
		groups: make(map[uint32]string),
		target: linux.Xattrs{Follow: true},
	}
}

// entry describes the file name in the directory dirfd, which clients know as
// path.
func (d *describer) entry(dirfd int, name, path string) (Entry, error) {
	var st unix.Stat_t
	if err := statAt(dirfd, name, &st); err != nil {
		return Entry{}, err
	}
	e := d.fromStat(path, &st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		d.follow(&e, dirfd, name)
	case unix.S_IFREG, unix.S_IFDIR:
		// Nothing else can have attributes of users (xattr(7)).
		e.Metadata = readMetadata(&d.own, dirfd, name)
	}
	return e, nil
}

// fromStat is the entry without what stat does not tell.
func (d *describer) fromStat(path string, st *unix.Stat_t) Entry {
	return Entry{
		Name:    filepath.Base(path),
		Path:    path,
		Type:    typeOf(st.Mode),
		Perm:    st.Mode & uint32(fs.ModePerm),
		Mode:    fileMode(st.Mode),
		Size:    st.Size,
		ModTime: time.Unix(st.Mtim.Unix()),
		Owner:   owner(d.users, st.Uid, d.view.Names, Names.UserName),
		Group:   owner(d.groups, st.Gid, d.view.Names, Names.GroupName),
	}
}

// follow fills in what e, a symbolic link, leads to, if the view follows it. The
// kernel walks the links and tells the path of where it arrived, whatever else
// moves meanwhile.
func (d *describer) follow(e *Entry, dirfd int, name string) {
	e.Type, e.Perm, e.SymlinkTarget = TypeUnknown, 0, e.Path
	_ = whileMoved(20, func() error { // what cannot be followed leads nowhere
		fd, st, err := d.view.pinAt(dirfd, name)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		target, err := pathOf(fd)
		if err != nil {
			return err
		}
		e.Type, e.Perm, e.SymlinkTarget = typeOf(st.Mode), st.Mode&uint32(fs.ModePerm), target
		e.Metadata = readMetadata(&d.target, unix.AT_FDCWD, procPath(fd))
		if !strings.HasSuffix(target, deletedSuffix) {
			return nil
		}
		p, err := d.view.placeOf(target, &st)
		if err == nil {
			p.close()
		}
		return err
	})
}

// owner is the name of id, looked up once.
func owner(known map[uint32]string, id uint32, names Names, look func(Names, uint32) string) string {
	if names == nil {
		return strconv.FormatUint(uint64(id), 10)
	}
	if name, ok := known[id]; ok {
		return name
	}
	name := look(names, id)
	if name == "" {
		name = strconv.FormatUint(uint64(id), 10)
	}
	known[id] = name
	return name
}

func typeOf(mode uint32) Type {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return TypeFile
	case unix.S_IFDIR:
		return TypeDirectory
	default:
		return TypeUnknown
	}
}

// fileMode turns the kernel's mode into the standard library's.
func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode) & fs.ModePerm
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	}
	if mode&unix.S_ISUID != 0 {
		m |= fs.ModeSetuid
	}
	if mode&unix.S_ISGID != 0 {
		m |= fs.ModeSetgid
	}
	if mode&unix.S_ISVTX != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// statAt is lstat of name in the directory dirfd.
func statAt(dirfd int, name string, st *unix.Stat_t) error {
	return linux.Retry(func() error { return unix.Fstatat(dirfd, name, st, unix.AT_SYMLINK_NOFOLLOW) })
}

// pin is pinAt for the file name in dirfd, where no link is followed.
func pin(dirfd int, name string) (fd int, st unix.Stat_t, err error) {
	fd, err = linux.OpenAt(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, st, err
	}
	return withStat(fd)
}

// withStat adds what fd is; it closes fd if that cannot be told.
func withStat(fd int) (_ int, st unix.Stat_t, err error) {
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

// pathMax is the kernel's limit for a path with its final zero byte (PATH_MAX
// in linux/limits.h).
const pathMax = 4096

// procPath names the open file fd for calls that want a path, and to open it
// again with other rights.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// deletedSuffix ends the path of a file that was removed or replaced, and may
// end any name.
const deletedSuffix = " (deleted)"

// pathOf is where the pinned file fd is now, or was.
func pathOf(fd int) (string, error) {
	var buf [pathMax]byte
	n, err := unix.Readlink(procPath(fd), buf[:])
	if err != nil {
		return "", err
	}
	path := string(buf[:n])
	// "pipe:[1]" and "(unreachable)/x" are no paths.
	if !strings.HasPrefix(path, "/") {
		return "", unix.ENOENT
	}
	return path, nil
}
