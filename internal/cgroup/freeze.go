package cgroup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Frozen counts the groups that a Freeze was about.
type Frozen struct {
	Groups int // there were
	Frozen int // the kernel reports as frozen
	Failed int // could not be told to freeze
}

// Freeze stops every process in the leaves that no other daemon has, and looks
// until ctx ends whether they have stopped. Nothing may be cloned into a leaf
// between Freeze and Thaw: who does waits for an exec that a frozen child does not
// get to, and gives it up. SIGKILL still works.
func (h *Hierarchy) Freeze(ctx context.Context) Frozen {
	h.Trim() // they are nobody's, and are not counted
	var f Frozen
	var waiting []*Group
	for _, g := range h.leaves() {
		switch err := g.write("cgroup.freeze", "1"); {
		case err == nil:
			waiting = append(waiting, g)
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
			continue // it is gone, and what was in it
		default:
			f.Failed++
		}
		f.Groups++
	}
	for _, g := range waiting {
		switch g.awaitFrozen(ctx) {
		case isFrozen:
			f.Frozen++
		case isGone:
			f.Groups--
		case isRunning:
		}
	}
	return f
}

// Thaw undoes Freeze. It looks for the leaves anew.
func (h *Hierarchy) Thaw() error {
	var errs []error
	for _, g := range h.leaves() {
		err := g.write("cgroup.freeze", "0")
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// leaves answers the groups of commands that no other daemon has: ours, and
// those that an earlier daemon left behind.
func (h *Hierarchy) leaves() []*Group {
	var all []*Group
	for _, class := range []Class{User, PTY} {
		entries, err := os.ReadDir(h.classDir(class))
		if err != nil {
			continue // removed by somebody: no leaves
		}
		for _, e := range entries {
			if e.IsDir() && abandoned(e.Name()) {
				all = append(all, &Group{h: h, path: filepath.Join(h.classDir(class), e.Name())})
			}
		}
	}
	return all
}

// freezeState is what the kernel says of a group.
type freezeState int

const (
	isRunning freezeState = iota
	isFrozen
	isGone
)

// awaitFrozen waits until the group has frozen or is gone, or ctx ends.
func (g *Group) awaitFrozen(ctx context.Context) freezeState {
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		b, err := g.read("cgroup.events")
		switch {
		case err != nil:
			return isGone
		case strings.Contains(b, "frozen 1"):
			return isFrozen
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return isRunning
		}
	}
}
