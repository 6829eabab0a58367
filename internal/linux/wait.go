package linux

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// siginfo is the part of siginfo_t that waitid(2) fills in, on 64 bits.
type siginfo struct {
	signo, errno, code, _ int32
	pid                   int32
	_                     [108]byte
}

// Exited answers the pid of a child that has ended, and leaves it to be reaped;
// 0 when there is none.
func Exited() (pid int, err error) {
	var info siginfo
	const how = unix.WEXITED | unix.WNOHANG | unix.WNOWAIT
	err = Retry(func() error {
		_, _, errno := unix.RawSyscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)), how, 0, 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
	return int(info.pid), err //nolint:wrapcheck // ECHILD is the rule, and not told
}
