package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The daemon goes to wrenn/system, and back when the hierarchy is closed.
func TestJoinAndBack(t *testing.T) {
	h := open(t)
	before, err := current(h.root)
	must(t, err)
	must(t, h.Join(true))
	t.Cleanup(func() { // before the hierarchy is closed by open
		must(t, h.Close())
		if now, err := current(before); err != nil || now != before {
			t.Errorf("after close the daemon is in %s, %v; want %s", now, err, before)
		}
	})
	now, err := current(h.root)
	must(t, err)
	if want := filepath.Join(h.dir, system); now != want {
		t.Errorf("the daemon is in %s, want %s", now, want)
	}
	if text, err := os.ReadFile(filepath.Join(now, "cgroup.procs")); err != nil || !strings.Contains(string(text), "\n") {
		t.Errorf("members %q, %v", text, err)
	}
	must(t, h.Join(true)) // again is fine
	g := create(t, h)
	child(t, g, "exec sleep 60")
	eventually(t, "the child in its leaf", func() bool { return procs(t, g) == 1 })
	must(t, g.Kill())
	wait(t, "the group to be gone", release(g))
}

// A daemon that a service manager keeps elsewhere stays there; one that was
// given the root to itself leaves it free.
func TestJoinOnlyFromTheRoot(t *testing.T) {
	h := open(t)
	before, err := current(h.root)
	must(t, err)
	must(t, h.Join(false))
	if now, _ := current(h.root); now != before {
		t.Errorf("moved from %s to %s", before, now)
	}

	delegated := root(t)
	must(t, move(delegated))
	t.Cleanup(func() { must(t, move(before)) })
	inner, err := Open(delegated)
	must(t, err)
	run(t, inner)
	if now, _ := current(delegated); now != filepath.Join(inner.dir, system) {
		t.Errorf("the daemon is in %s, below its root %s", now, delegated)
	}
}

func TestUnified(t *testing.T) {
	for text, want := range map[string]string{
		"0::/\n": "/",
		"11:pids:/a\n1:name=systemd:/b\n0::/user.slice/x::y\n": "/user.slice/x::y",
		"11:pids:/a\n": "",
		"":             "",
	} {
		if got, err := unified(text); got != want || (err == nil) != (want != "") {
			t.Errorf("unified(%q) = %q, %v; want %q", text, got, err, want)
		}
	}
}
