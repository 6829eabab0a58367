package boot

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// nullDevice is the number of /dev/null, 1:3.
var nullDevice = unix.Mkdev(1, 3)

// openConsole makes /dev/console standard input, output and error where those
// lead nowhere: a kernel that found no console starts init without any, and the
// Go runtime then opens /dev/null in their place. What is written there, such
// as the stack of a panic, must reach the host.
func openConsole() error {
	for fd := range 3 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err == nil && (st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != nullDevice) {
			continue
		}
		if err := consoleAs(fd); err != nil {
			return err
		}
	}
	return nil
}

func consoleAs(fd int) error {
	// O_NOCTTY: nobody's Ctrl-C on the console is for the daemon.
	console, err := os.OpenFile("/dev/console", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("open console: %w", err)
	}
	defer console.Close()
	if err := unix.Dup3(int(console.Fd()), fd, 0); err != nil {
		return fmt.Errorf("make console descriptor %d: %w", fd, err)
	}
	return nil
}

// panicSeconds is after how long the kernel restarts the machine when init has
// died. Its own default is never, and the host would wait for nothing.
const panicSeconds = "1"

// restartOnPanic has the kernel restart the machine after a panic, the end of
// init being one, unless its command line (panic=) decides otherwise.
func restartOnPanic() error {
	const file = "/proc/sys/kernel/panic"
	now, err := os.ReadFile(file)
	if err != nil || string(now) != "0\n" {
		return err
	}
	return os.WriteFile(file, []byte(panicSeconds), 0)
}

// keepCtrlAltDel turns Ctrl-Alt-Del into a SIGINT for init: hosts press it to
// ask for an orderly end (reboot(2), LINUX_REBOOT_CMD_CAD_OFF).
func keepCtrlAltDel() error { return linux.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) }
