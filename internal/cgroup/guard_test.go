package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// Whatever the machine's size, the classes get less than all of it, more than
// half, and the daemon's share fits into the rest.
func TestGuardLeavesSomethingForTheDaemon(t *testing.T) {
	for _, c := range []capacity{
		{memory: 128 << 20, pids: 1000},
		{memory: 512 << 20, pids: 3900},
		{memory: 8 << 30, pids: 32768},
		{memory: 1 << 40, pids: 4 << 20},
	} {
		values := make(map[string]int64)
		for _, s := range guard(c) {
			n, err := strconv.ParseInt(s.value, 10, 64)
			if err != nil {
				t.Fatalf("%+v: %v", s, err)
			}
			values[s.group+"/"+s.file] = n
		}
		for _, class := range []Class{PTY, User} {
			high, most := values[string(class)+"/memory.high"], values[string(class)+"/memory.max"]
			if high <= c.memory/2 || high >= most || most >= c.memory {
				t.Errorf("%d bytes: %s gets %d to %d", c.memory, class, high, most)
			}
			if least := values[system+"/memory.min"]; least <= 0 || least > c.memory-most {
				t.Errorf("%d bytes: the daemon keeps %d beside %d", c.memory, least, most)
			}
			if n := values[string(class)+"/pids.max"]; n <= c.pids/2 || n >= c.pids {
				t.Errorf("%d numbers: %s gets %d", c.pids, class, n)
			}
			if values[string(class)+"/cpu.weight"] >= values[system+"/cpu.weight"] {
				t.Errorf("%s weighs %d", class, values[string(class)+"/cpu.weight"])
			}
		}
		if values["/memory.min"] < values[system+"/memory.min"] {
			t.Errorf("the group above the daemon's keeps %d", values["/memory.min"])
		}
	}
}

// A machine too small to share, or of unknown size, is left as it is.
func TestGuardOfATinyMachine(t *testing.T) {
	for _, c := range []capacity{{}, {memory: 48 << 20}} {
		for _, s := range guard(c) {
			if s.controller == "memory" || s.controller == "pids" {
				t.Errorf("%+v: %+v", c, s)
			}
		}
	}
}

func TestCapacity(t *testing.T) {
	h := open(t)
	if c := h.capacity(); c.memory < 1<<20 || c.pids < 100 {
		t.Errorf("capacity %+v", c)
	}
}

func TestLower(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]int64{"max\n": 7, "9\n": 7, "5\n": 5, "": 7, "x": 7} {
		file := filepath.Join(dir, "f")
		must(t, os.WriteFile(file, []byte(text), 0o600))
		if got := lower(7, file); got != want {
			t.Errorf("lower(7, %q) = %d, want %d", text, got, want)
		}
	}
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("5\n"), 0o600))
	if got := lower(0, filepath.Join(dir, "f")); got != 5 {
		t.Errorf("lower(0, 5) = %d", got)
	}
	if got := lower(3, filepath.Join(dir, "missing")); got != 3 {
		t.Errorf("lower(3, missing) = %d", got)
	}
}

// The groups that hosts read are there, and gone afterwards: root checks that.
func TestGroupsForHosts(t *testing.T) {
	h := open(t)
	for _, name := range []string{"user", "pty", "system", "socat"} {
		if !exists(filepath.Join(h.root, top, name)) {
			t.Errorf("no group %s", name)
		}
	}
}
