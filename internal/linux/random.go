package linux

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Reseed makes the kernel's random numbers new, from all that it has gathered
// and from extra, which need not be secret. It takes CAP_SYS_ADMIN
// (random(4), RNDRESEEDCRNG, Linux 4.17).
func Reseed(extra []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("reseed random numbers: %w", err)
	}
	defer f.Close()
	_, writeErr := f.Write(extra) // mixed in, and credited with nothing
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDRESEEDCRNG, 0)
	if errno != 0 {
		return errors.Join(writeErr, fmt.Errorf("ioctl RNDRESEEDCRNG: %w", errno))
	}
	return writeErr
}
