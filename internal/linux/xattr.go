package linux

import (
	"errors"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Xattrs reads the extended attributes of a file, named relative to a directory
// or to the working directory for unix.AT_FDCWD. The empty name is the open
// file dirfd itself. A buffer is kept from call to
// call, so one value serves one goroutine.
type Xattrs struct {
	// Follow reads the file that a symbolic link leads to, not the link.
	Follow bool

	buf []byte
}

// xattrBuffer holds the names or the value of nearly every file; xattrMax is
// the kernel's limit of either (XATTR_LIST_MAX, XATTR_SIZE_MAX in
// linux/limits.h).
const (
	xattrBuffer = 1 << 10
	xattrMax    = 64 << 10
)

// Each calls f with the name of every attribute of the file name in dirfd. A
// filesystem without attributes has none.
func (x *Xattrs) Each(dirfd int, name string, f func(attribute string) error) error {
	names, err := x.read(func(buf []byte) (int, error) {
		if name == "" {
			return unix.Flistxattr(dirfd, buf)
		}
		n, err := listAt(dirfd, name, x.flags(), buf)
		if errors.Is(err, unix.ENOSYS) {
			return x.list(procPath(dirfd, name), buf)
		}
		return n, err
	})
	if errors.Is(err, unix.EOPNOTSUPP) || err == nil && len(names) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	// f may read values into the buffer that holds the names: copy them.
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if err := f(name); err != nil {
			return err
		}
	}
	return nil
}

// Value is the value of an attribute of the file name in dirfd, valid until the
// next call.
func (x *Xattrs) Value(dirfd int, name, attribute string) ([]byte, error) {
	if name == "" {
		return x.read(func(buf []byte) (int, error) { return unix.Fgetxattr(dirfd, attribute, buf) })
	}
	value := unix.Lgetxattr
	if x.Follow {
		value = unix.Getxattr
	}
	path := procPath(dirfd, name)
	return x.read(func(buf []byte) (int, error) { return value(path, attribute, buf) })
}

func (x *Xattrs) flags() int {
	if x.Follow {
		return 0
	}
	return unix.AT_SYMLINK_NOFOLLOW
}

func (x *Xattrs) list(path string, buf []byte) (int, error) {
	if x.Follow {
		return unix.Listxattr(path, buf)
	}
	return unix.Llistxattr(path, buf)
}

// listAt is listxattrat(2), of Linux 6.13. The way through /proc takes four
// times as long, which a listing notices.
func listAt(dirfd int, name string, flags int, buf []byte) (int, error) {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	n, _, errno := unix.Syscall6(unix.SYS_LISTXATTRAT, uintptr(dirfd), uintptr(unsafe.Pointer(p)),
		uintptr(flags), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// procPath names the file name in dirfd for calls that take no directory.
func procPath(dirfd int, name string) string {
	if dirfd == unix.AT_FDCWD {
		return name
	}
	return "/proc/self/fd/" + strconv.Itoa(dirfd) + "/" + name
}

// read calls f with the buffer until the answer fits.
func (x *Xattrs) read(f func([]byte) (int, error)) ([]byte, error) {
	if x.buf == nil {
		x.buf = make([]byte, xattrBuffer)
	}
	for {
		n, err := RetryInt(func() (int, error) { return f(x.buf) })
		if errors.Is(err, unix.ERANGE) && len(x.buf) < xattrMax {
			x.buf = make([]byte, xattrMax)
			continue
		}
		return x.buf[:max(n, 0)], err
	}
}
