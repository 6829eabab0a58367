package filesystem

import (
	"errors"

	"golang.org/x/sys/unix"
)

// place is a name in a directory, for calls that take one.
type place struct {
	dir  int // or unix.AT_FDCWD
	name string
}

// retry runs call until it ends in anything but EINTR.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
