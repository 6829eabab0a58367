package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// mount is a file system that the kernel leaves to user space.
type mount struct {
	target  string
	kind    string
	flags   uintptr
	options string
	magic   int64 // what statfs(2) says when it is there
}

const hardened = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mounts come in an order in which each finds what it needs.
var mounts = []mount{
	{"/proc", "proc", hardened, "", unix.PROC_SUPER_MAGIC},
	{"/sys", "sysfs", hardened, "", unix.SYSFS_MAGIC},
	// Not found by its magic, which is that of any tmpfs.
	{"/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755", 0},
	// devpts(5): 5 is the group tty everywhere; without ptmxmode nobody but
	// root could open a terminal.
	{"/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666", unix.DEVPTS_SUPER_MAGIC},
	{"/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777", unix.TMPFS_MAGIC},
	{"/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755", unix.TMPFS_MAGIC},
	{"/sys/fs/cgroup", "cgroup2", hardened, "memory_recursiveprot", unix.CGROUP2_SUPER_MAGIC},
}

// mountMissing mounts what is not there. A directory that lacks is made, which
// a read-only root may not allow.
func mountMissing(failed func(step string, err error)) {
	for _, m := range mounts {
		if err := m.ensure(); err != nil {
			failed("mount "+m.target, err)
		}
	}
	if err := linkDevices(); err != nil {
		failed("link /dev", err)
	}
}

func (m mount) ensure() error {
	if m.present() {
		return nil
	}
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	err := unix.Mount(m.kind, m.target, m.kind, m.flags, m.options)
	if errors.Is(err, unix.EINVAL) && m.options != "" {
		// Such as memory_recursiveprot, which is Linux 5.7's.
		err = unix.Mount(m.kind, m.target, m.kind, m.flags, "")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", m.kind, err)
	}
	return nil
}

func (m mount) present() bool {
	if m.kind == "devtmpfs" {
		_, err := os.Stat("/dev/null")
		return err == nil && mountPoint("/dev")
	}
	var st unix.Statfs_t
	return unix.Statfs(m.target, &st) == nil && st.Type == m.magic && mountPoint(m.target)
}

// mountPoint tells whether something is mounted at path: it lies on another
// device than what it is in.
func mountPoint(path string) bool {
	var at, above unix.Stat_t
	if unix.Lstat(path, &at) != nil || unix.Lstat(path+"/..", &above) != nil {
		return false
	}
	return at.Dev != above.Dev
}

// linkDevices makes the names that programs expect in /dev and devtmpfs lacks.
func linkDevices() error {
	var errs []error
	for _, l := range [][2]string{
		{"/dev/fd", "/proc/self/fd"},
		{"/dev/stdin", "/proc/self/fd/0"},
		{"/dev/stdout", "/proc/self/fd/1"},
		{"/dev/stderr", "/proc/self/fd/2"},
		// The instance at /dev/pts is the one that counts.
		{"/dev/ptmx", "pts/ptmx"},
	} {
		err := os.Symlink(l[1], l[0])
		if err != nil && !errors.Is(err, fs.ErrExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// mountTmp puts a tmpfs on /tmp unless that is on a disk that can be written.
func mountTmp() error {
	if onWritableDisk("/tmp") || onWritableDisk("/") && unix.Mkdir("/tmp", 0o777) == nil {
		return unix.Chmod("/tmp", 0o1777)
	}
	m := mount{"/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777", unix.TMPFS_MAGIC}
	return m.ensure()
}

func onWritableDisk(path string) bool {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil || st.Flags&unix.ST_RDONLY != 0 {
		return false
	}
	return st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC
}

// writableRoot makes the root writable, which the kernel mounts read-only
// unless its command line says "rw".
func writableRoot() error {
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil || st.Flags&unix.ST_RDONLY == 0 {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_REMOUNT, "")
}
