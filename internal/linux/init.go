package linux

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// moduleCompressed is MODULE_INIT_COMPRESSED_FILE: the kernel decompresses the
// module itself, where it was built to (linux/module.h, Linux 5.17).
const moduleCompressed = 4

// ErrPacked means that the kernel does not decompress that module: it was built
// without CONFIG_MODULE_DECOMPRESS, or for another format.
var ErrPacked = errors.New("the kernel does not decompress it")

// LoadModule loads a kernel module from its file. One that is loaded already,
// or built in, is EEXIST.
func LoadModule(path string, compressed bool) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open module: %w", err)
	}
	defer f.Close()
	flags := 0
	if compressed {
		flags = moduleCompressed
	}
	err = Retry(func() error { return unix.FinitModule(int(f.Fd()), "", flags) })
	if compressed && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) {
		// EINVAL is a kernel that does not know the flag, or meets another format
		// than its own.
		err = fmt.Errorf("%w: %w", ErrPacked, err)
	}
	if err != nil {
		return fmt.Errorf("load module %s: %w", path, err)
	}
	return nil
}

// ClockOf tells what the clock behind a character device such as /dev/ptp0
// reads, in nanoseconds (clock_getres(2), "Dynamic clocks").
func ClockOf(device *os.File) (int64, error) {
	const clockFD = 3
	var ts unix.Timespec
	raw, err := device.SyscallConn()
	if err == nil {
		// Not device.Fd: of a file that is closed it is -1, which makes the number
		// of another clock, the thread's processor time.
		ctlErr := raw.Control(func(fd uintptr) { err = unix.ClockGettime(int32(^fd<<3|clockFD), &ts) })
		err = errors.Join(ctlErr, err)
	}
	if err != nil {
		return 0, fmt.Errorf("read clock of %s: %w", device.Name(), err)
	}
	return ts.Nano(), nil
}

// StepClock moves the wall clock by offset nanoseconds at once.
func StepClock(offset int64) error {
	// clock_adjtime(2), ADJ_SETOFFSET: relative, so that no time is lost
	// between reading and setting. The kernel wants 0 <= fraction < 1 s.
	const second = 1_000_000_000
	sec, nsec := offset/second, offset%second
	if nsec < 0 {
		sec, nsec = sec-1, nsec+second
	}
	tx := unix.Timex{Modes: unix.ADJ_SETOFFSET | unix.ADJ_NANO, Time: unix.Timeval{Sec: sec, Usec: nsec}}
	if _, err := unix.ClockAdjtime(unix.CLOCK_REALTIME, &tx); err != nil {
		return fmt.Errorf("step clock: %w", err)
	}
	return nil
}

// SlewClock makes the wall clock gain offset nanoseconds, or lose them, by
// running half a per mille faster or slower (adjtimex(2), ADJ_OFFSET_SINGLESHOT).
func SlewClock(offset int64) error {
	tx := unix.Timex{Modes: unix.ADJ_OFFSET_SINGLESHOT, Offset: offset / 1000} // microseconds
	if _, err := unix.ClockAdjtime(unix.CLOCK_REALTIME, &tx); err != nil {
		return fmt.Errorf("slew clock: %w", err)
	}
	return nil
}

// HasChildren tells whether the process has a child, an adopted one or one that
// is a zombie included. It reaps nothing.
func HasChildren() bool {
	var info [128]byte // siginfo_t
	_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)),
		unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, 0, 0)
	return errno != unix.ECHILD
}

// Reboot does what cmd says, one of the LINUX_REBOOT_CMD constants. It does not
// sync file systems, and it does not return when the machine goes down.
func Reboot(cmd int) error {
	if err := unix.Reboot(cmd); err != nil {
		return fmt.Errorf("reboot %#x: %w", cmd, err)
	}
	return nil
}

// SyncAll writes the named files out, or all file systems when there are none.
func SyncAll(files ...string) error {
	if len(files) == 0 {
		unix.Sync()
	}
	var errs []error
	for _, name := range files {
		f, err := os.Open(name)
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
