package linux

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount mounts a filesystem of that type. options are the filesystem's own, as
// its kernel documentation has them. ENODEV means that the kernel does not know
// the type. The call blocks for as long as a server takes; only a signal that
// kills ends it.
func Mount(kind, source, target, options string) error {
	if err := Retry(func() error { return unix.Mount(source, target, kind, unix.MS_NODEV|unix.MS_NOSUID, options) }); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}

// Unmount takes the topmost mount away from target at once, also one in use or
// whose server does not answer; what is open there stays so.
func Unmount(target string) error {
	if err := Retry(func() error { return unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) }); err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

// MountKind is the type of the topmost filesystem mounted on exactly target, a
// path without symbolic links, or "" for none. It asks no server.
func MountKind(target string) (string, error) {
	table, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("list mounts: %w", err)
	}
	return mountKind(table, target), nil
}

// mountKind reads proc_pid_mountinfo(5): the fifth field is where, and the type
// follows the field "-". A later line lies on top of an earlier one.
func mountKind(table []byte, target string) (kind string) {
	for line := range bytes.Lines(table) {
		before, after, ok := strings.Cut(string(line), " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if ok && len(fields) > 4 && len(rest) > 0 && UnescapeMount(fields[4]) == target {
			kind = rest[0]
		}
	}
	return kind
}

// UnescapeMount undoes \ooo in a path of a mountinfo table, which stands for space,
// tab, newline and backslash.
func UnescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out = append(out, byte(n))
				i += 3
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}
