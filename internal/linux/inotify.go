package linux

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// OpenInotify opens an inotify instance that does not block, for the runtime's
// poller. EMFILE means the user's limit of instances or the process's limit of
// descriptors (inotify_init(2)).
func OpenInotify() (int, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("inotify_init1: %w", err)
	}
	return fd, nil
}

// AddWatch watches the inode behind the descriptor target and returns its watch
// descriptor, the same one for an inode that is watched already. The call
// itself knows paths only; the detour through /proc reaches exactly the inode
// that the caller holds, wherever it has been moved to. ENOSPC means the limit
// of watches (inotify_add_watch(2)).
func AddWatch(inotify, target int, mask uint32) (int32, error) {
	path := strconv.AppendInt(append(make([]byte, 0, 32), "/proc/self/fd/"...), int64(target), 10)
	wd, err := RetryInt(func() (int, error) { return unix.InotifyAddWatch(inotify, string(path), mask) })
	if err != nil {
		return -1, fmt.Errorf("inotify_add_watch: %w", err)
	}
	return int32(wd), nil // the kernel's watch descriptors are ints of 32 bits
}

// RemoveWatch ends a watch; IN_IGNORED follows in the queue. EINVAL means that
// the kernel has ended it already.
func RemoveWatch(inotify int, wd int32) error {
	if _, err := unix.InotifyRmWatch(inotify, uint32(wd)); err != nil { // never negative
		return fmt.Errorf("inotify_rm_watch %d: %w", wd, err)
	}
	return nil
}
