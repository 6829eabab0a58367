package linux

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// SyncFilesystem writes out the filesystem that path is on (syncfs(2)). Before
// Linux 5.8 write errors go unreported.
func SyncFilesystem(path string) error {
	fd, err := RetryInt(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Syncfs(fd); err != nil {
		return fmt.Errorf("syncfs %s: %w", path, err)
	}
	return nil
}
