package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Join moves the daemon into wrenn/system, out of reach of what commands use
// up. Without force it does so only when the daemon is in the root group itself:
// one that a service manager keeps elsewhere stays in its manager's sight.
//
// The kernel may take milliseconds to move a process between groups, so this is
// not part of Open.
func (h *Hierarchy) Join(force bool) error {
	if h.joined.Load() {
		return nil
	}
	origin, err := current(h.root)
	switch {
	case err != nil:
		return fmt.Errorf("join cgroup: %w", err)
	case !force && origin != filepath.Clean(h.root):
		return nil
	}
	if err := move(filepath.Join(h.dir, system)); err != nil {
		return fmt.Errorf("join cgroup: %w", err)
	}
	h.origin = origin
	h.joined.Store(true)
	return nil
}

// vacate makes the root group free of processes where it must be: a group other
// than the kernel's own root has either processes or controllers for groups
// below it (cgroups(7), "no internal processes").
func (h *Hierarchy) vacate() {
	if _, err := os.Stat(filepath.Join(h.root, "cgroup.type")); err == nil {
		_ = h.Join(false) // then enable finds out
	}
}

// leave takes the daemon back to where it was before Join.
func (h *Hierarchy) leave() {
	if !h.joined.Load() {
		return
	}
	err := move(h.origin)
	if errors.Is(err, unix.EBUSY) && h.origin == filepath.Clean(h.root) {
		// See vacate: the root was delegated to us, and so were its controllers.
		// A group takes none back that one below still hands on.
		for c := range h.controllers {
			for _, dir := range slices.Backward(h.levels()) {
				_ = writeFile(filepath.Join(dir, "cgroup.subtree_control"), "-"+c) // move tells
			}
		}
		err = move(h.origin)
	}
	if err == nil {
		h.joined.Store(false)
	}
}

// move puts the whole process into the group dir.
func move(dir string) error { return writeFile(filepath.Join(dir, "cgroup.procs"), "0") }

// current is the directory of the daemon's own group, on the mount that root is
// part of. The kernel names it relative to the root of our cgroup namespace,
// which is what a mount made in that namespace shows.
func current(root string) (string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	name, err := unified(string(text))
	if err != nil {
		return "", err
	}
	mount, err := mountOf(root)
	if err != nil {
		return "", err
	}
	return filepath.Join(mount, name), nil
}

// unified finds the group of the version 2 hierarchy in /proc/self/cgroup
// (cgroups(7)): the line with hierarchy 0 and no controllers.
func unified(text string) (string, error) {
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return name, nil
		}
	}
	return "", errors.New("no cgroup v2 membership")
}

// mountOf finds the directory that the cgroup2 filesystem of dir is mounted on:
// the topmost one that is still of that filesystem.
func mountOf(dir string) (string, error) {
	dir = filepath.Clean(dir)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", fmt.Errorf("stat %s: %w", dir, err)
	}
	for dir != "/" {
		var above unix.Stat_t
		if err := unix.Stat(filepath.Dir(dir), &above); err != nil {
			return "", fmt.Errorf("stat %s: %w", filepath.Dir(dir), err)
		}
		if above.Dev != st.Dev {
			break
		}
		dir = filepath.Dir(dir)
	}
	return dir, nil
}
