package watch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotFound says that the path to watch does not exist. It matches
	// fs.ErrNotExist.
	ErrNotFound = fmt.Errorf("no such directory: %w", fs.ErrNotExist)
	// ErrNotDirectory says that the path to watch is something else.
	ErrNotDirectory = errors.New("not a directory")
	// ErrNetworkMount says that the path is on a network filesystem, where
	// changes made by others are not seen.
	ErrNetworkMount = errors.New("network mounts are not watched unless allowed")
	// ErrOverflow says that events were lost; those returned before it are
	// complete.
	ErrOverflow = errors.New("watch queue overflowed, events were lost")
	// ErrWatchLimit is matched by every *LimitError.
	ErrWatchLimit = errors.New("watch limit reached")
	// ErrRootRemoved follows the Remove event of the watched directory: it was
	// removed, renamed or unmounted, or its path leads elsewhere.
	ErrRootRemoved = errors.New("watched directory was removed")
	// ErrClosed is returned by Next after Close. It matches fs.ErrClosed.
	ErrClosed = fmt.Errorf("watcher is closed: %w", fs.ErrClosed)
	// ErrUnknownWatcher says that a Set has no watcher of that id.
	ErrUnknownWatcher = errors.New("no such watcher")
)

// LimitError says which limit refused a watch.
type LimitError struct {
	Limit string // as sysctl or ulimit name it
	Value int64  // what it is set to, -1 when that cannot be read
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("watch limit reached: %s is %d", e.Limit, e.Value)
}

// Is makes a LimitError match ErrWatchLimit.
func (e *LimitError) Is(target error) bool { return target == ErrWatchLimit }

// instanceError explains a failed inotify_init1.
func instanceError(err error) error {
	if !errors.Is(err, unix.EMFILE) {
		return err
	}
	// The errno is the same for the process's own limit, which refuses any
	// other descriptor too.
	fd, probe := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if probe == nil {
		_ = unix.Close(fd)
		return lowestLimit("instances")
	}
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		lim.Cur = 0
	}
	return &LimitError{Limit: "RLIMIT_NOFILE", Value: int64(lim.Cur)} // far below 2^63
}

// watchError explains a failed inotify_add_watch. ENOSPC is about watches, not
// about the disk.
func watchError(err error) error {
	if errors.Is(err, unix.ENOSPC) {
		return lowestLimit("watches")
	}
	return err
}

// lowestLimit names the limit in force: the system's, or the lower one of our
// user namespace (namespaces(7), /proc/sys/user).
func lowestLimit(what string) error {
	limit := &LimitError{Limit: "fs.inotify.max_user_" + what, Value: -1}
	limit.Value = sysctl(limit.Limit)
	if name := "user.max_inotify_" + what; limit.Value < 0 || uint64(sysctl(name)) < uint64(limit.Value) { // -1 must be the largest
		*limit = LimitError{Limit: name, Value: sysctl(name)}
	}
	return limit
}

// sysctl reads a number from /proc/sys, -1 when there is none.
func sysctl(name string) int64 {
	text, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return -1
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return -1
	}
	return n
}
