// Package linux wraps the system calls the daemon needs and the standard
// library lacks.
//
// Each function is one call or one idiom: it retries EINTR, opens every
// descriptor close-on-exec and returns errors that name the call and its
// object, for callers to test with errors.Is against a unix.Errno. There is no
// state and no policy here, and functions are safe for concurrent use unless
// they say that they act on the calling thread.
package linux

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Retry runs f until it ends in anything but EINTR.
func Retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// RetryInt is Retry for calls that answer a number.
func RetryInt(f func() (int, error)) (n int, err error) {
	err = Retry(func() error {
		n, err = f()
		return err
	})
	return n, err
}
