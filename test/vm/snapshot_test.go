package vm

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// saved is a snapshot: what QEMU wrote of a machine that is gone.
type saved struct {
	img  image
	file string
	size int64 // bytes
	took time.Duration
}

// snapshot freezes the machine, saves it and ends QEMU.
func (m *machine) snapshot(t testing.TB) *saved {
	t.Helper()
	s := &saved{img: m.img, file: filepath.Join(m.dir, "snapshot")}
	began := time.Now()
	_, err := m.mon.command("stop", nil)
	must(t, err)
	const unbounded = 1 << 40 // the default would take seconds for nothing
	_, err = m.mon.command("migrate-set-parameters", map[string]any{"max-bandwidth": unbounded})
	must(t, err)
	_, err = m.mon.command("migrate", map[string]any{"uri": "exec:cat >" + s.file})
	must(t, err)
	must(t, m.mon.migrated(time.Now().Add(stepLimit)))
	s.took = time.Since(began)
	m.kill()
	info, err := os.Stat(s.file)
	must(t, err)
	s.size = info.Size()
	return s
}

// restore starts a machine from the snapshot on the given link, and lets it go
// on. Nothing tells the guest.
func (s *saved) restore(t testing.TB, l *link) *machine {
	t.Helper()
	m := launch(t, s.img, l, "-incoming", "exec:cat "+s.file)
	must(t, m.mon.migrated(time.Now().Add(stepLimit)))
	_, err := m.mon.command("cont", nil)
	must(t, err)
	return m
}
