package linux

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMoveClock moves the clock by a microsecond, forth and back: a negative
// offset is not one that the kernel takes as it is.
func TestMoveClock(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("takes root")
	}
	for _, by := range []int64{-1000, 1000} {
		if err := StepClock(by); err != nil {
			t.Errorf("step by %d: %v", by, err)
		}
	}
	if err := SlewClock(0); err != nil {
		t.Errorf("slew: %v", err)
	}
}

func TestClockOfNoClock(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if now, err := ClockOf(f); err == nil {
		t.Errorf("%s is a clock, and it is %d", f.Name(), now)
	}
	must(t, f.Close())
	if now, err := ClockOf(f); err == nil {
		t.Errorf("a device that is closed reads %d", now) // another clock's time
	}
}

func TestLoadModuleErrors(t *testing.T) {
	dir := t.TempDir()
	if err := LoadModule(filepath.Join(dir, "none.ko"), false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	file := filepath.Join(dir, "bad.ko")
	if err := os.WriteFile(file, []byte("not a module"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := LoadModule(file, false); err == nil {
		t.Error("a text was loaded as a module")
	}
}

func TestSyncAll(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := SyncAll(file); err != nil {
		t.Error(err)
	}
	if err := SyncAll(file, file+".none"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("one of two is not there: %v", err)
	}
}
