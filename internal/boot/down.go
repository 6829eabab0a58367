package boot

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

const (
	// killWait bounds how long killed processes may take to go: one in an
	// uninterruptible sleep never does.
	killWait = 2 * time.Second
	// lookPause lies between two looks at whether processes are left, for which
	// there is no event while somebody else reaps.
	lookPause = 5 * time.Millisecond
	// downWait bounds writing and unmounting file systems: one on a network may
	// have nobody behind it any more.
	downWait = 10 * time.Second
)

// Terminate asks every process of the machine but this one to end.
func Terminate() {
	// ESRCH: there is none.
	_ = unix.Kill(-1, unix.SIGTERM)
	_ = unix.Kill(-1, unix.SIGCONT) // a stopped process could not obey
}

// Kill waits until deadline for the processes to end, kills what is left then
// and waits for that. The caller sees to it that children are reaped meanwhile.
func Kill(deadline time.Time) error {
	if waitAlone(deadline) {
		return nil
	}
	_ = unix.Kill(-1, unix.SIGKILL)
	if !waitAlone(time.Now().Add(killWait)) {
		return errors.New("kill processes: some do not end")
	}
	return nil
}

// waitAlone waits until deadline for this process to be the only one: all that
// run in user space are its children, or become so before they are reaped.
func waitAlone(deadline time.Time) bool {
	for linux.HasChildren() {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(lookPause)
	}
	return true
}

// Down writes and unmounts the file systems and ends the machine: power off, or
// a restart. It does not return.
func Down(restart bool, log *slog.Logger) {
	unmounted := make(chan []error, 1)
	go func() { unmounted <- unmountAll() }()
	select {
	case errs := <-unmounted:
		for _, err := range errs {
			log.Warn("file system is not unmounted", "error", err)
		}
	case <-time.After(downWait):
		log.Warn("file systems are not unmounted in time")
	}
	cmd := unix.LINUX_REBOOT_CMD_POWER_OFF
	if restart || !canPowerOff("/sys/firmware/acpi/tables/DSDT") {
		cmd = unix.LINUX_REBOOT_CMD_RESTART
	}
	log.Error("the machine does not go down", "error", linux.Reboot(cmd))
	for {
		time.Sleep(time.Hour) // init never exits
	}
}

// canPowerOff tells whether the machine has a way to be off. Where an x86 one
// has none, the kernel would halt for ever, and the host would wait for it:
// a restart is what ends a Firecracker machine there. The way is the ACPI state
// S5, whose object the table of the firmware names (ACPI 6.5, 7.4.2); sysfs is
// still mounted when this is read, being busy at worst. Others have PSCI.
func canPowerOff(table string) bool {
	if runtime.GOARCH != "amd64" {
		return true
	}
	b, err := os.ReadFile(table)
	return err == nil && bytes.Contains(b, []byte("_S5_"))
}

// kept stay mounted to the end: they hold nothing to be written, and we need
// them.
var kept = []string{"/proc", "/sys", "/dev"}

// unmountAll leaves nothing unwritten: every file system is unmounted, the last
// first, or made read-only where it is in use, as the root is.
func unmountAll() (errs []error) {
	unix.Sync()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []error{fmt.Errorf("read mounts: %w", err)}
	}
	points := mountPoints(string(table))
	for i := len(points) - 1; i >= 0; i-- {
		if err := leave(points[i]); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", points[i], err))
		}
	}
	unix.Sync()
	return errs
}

// leave unmounts what is at point, or makes it read-only.
func leave(point string) error {
	for _, k := range kept {
		if point == k {
			return nil
		}
	}
	if point != "/" {
		if err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW); err == nil {
			return nil
		}
	}
	err := unix.Mount("", point, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	if err == nil || holdsNothing(point) {
		return nil
	}
	return err
}

// holdsNothing tells whether a file system lives in memory or in the kernel.
func holdsNothing(point string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(point, &st); err != nil {
		return false
	}
	switch st.Type {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC:
		return true
	}
	return false
}

// mountPoints lists the mount points of a mountinfo table, in its order
// (proc_pid_mountinfo(5)).
func mountPoints(table string) []string {
	var points []string
	for line := range strings.Lines(table) {
		if fields := strings.Fields(line); len(fields) > 4 {
			points = append(points, linux.UnescapeMount(fields[4]))
		}
	}
	return points
}
