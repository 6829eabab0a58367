package linux

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OpenTTY opens a new pseudo-terminal. The master is non-blocking and polled
// by the runtime: Close interrupts a read on it, and nobody may call its Fd
// method, which would make it blocking again. The caller closes both.
func OpenTTY() (master *os.File, slave Descriptor, err error) {
	fd, err := RetryInt(func() (int, error) {
		return unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, -1, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		_ = unix.Close(fd)
		return nil, -1, fmt.Errorf("unlock tty: %w", err)
	}
	// TIOCGPTPEER (Linux 4.13) opens the other side without looking it up
	// below /dev/pts, which may not be mounted where we look.
	s, err := openPeer(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, -1, err
	}
	return os.NewFile(uintptr(fd), "tty master"), s, nil
}

// openPeer opens the terminal's own side of the master fd, blocking.
func openPeer(fd int) (Descriptor, error) {
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER,
		unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, fmt.Errorf("open tty peer: %w", errno)
	}
	return Descriptor(peer), nil
}

// SetTTYSize sets the size of the terminal behind fd. The kernel sends
// SIGWINCH to its foreground process group when the size changes.
func SetTTYSize(fd uintptr, cols, rows uint16) error {
	if err := unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows}); err != nil {
		return fmt.Errorf("ioctl TIOCSWINSZ: %w", err)
	}
	return nil
}
