package linux

import (
	"errors"

	"golang.org/x/sys/unix"
)

// beneathTries bounds the retries of OpenBeneath. The kernel answers EAGAIN
// when a rename anywhere in the tree might have carried a ".." of a symbolic
// link outside (openat2(2), RESOLVE_BENEATH); somebody who renames without end
// must not hold us for ever.
const beneathTries = 128

// OpenAt opens path relative to the directory dirfd, or to the working
// directory for unix.AT_FDCWD, close-on-exec. Its error is the bare
// unix.Errno: the caller knows the path as the user wrote it.
func OpenAt(dirfd int, path string, flags int, mode uint32) (int, error) {
	return RetryInt(func() (int, error) {
		return unix.Openat(dirfd, path, flags|unix.O_CLOEXEC, mode)
	})
}

// OpenNoMagic is OpenAt, but a magic link of /proc on the way, which leads to an
// open file whatever the directories above that allow, is ELOOP. It needs Linux
// 5.6.
func OpenNoMagic(dirfd int, path string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_NO_MAGICLINKS,
	}
	return RetryInt(func() (int, error) { return unix.Openat2(dirfd, path, &how) })
}

// OpenBeneath is OpenAt for a path that must stay below dirfd, whatever
// symbolic links are in the way: one that leads out, an absolute one and the
// magic links of /proc are refused with EXDEV or ELOOP. It needs Linux 5.6.
func OpenBeneath(dirfd int, path string, flags int, mode uint32) (fd int, err error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	}
	for range beneathTries {
		fd, err = RetryInt(func() (int, error) { return unix.Openat2(dirfd, path, &how) })
		if !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	return fd, err
}
