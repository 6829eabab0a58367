package vm

import (
	"context"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/client"
)

// usualGrace is what processes get between SIGTERM and SIGKILL where nobody says
// otherwise.
const usualGrace = 2 * time.Second

// TestEnds ends a machine in the ways that other tests leave out: TestBare
// presses keys, TestDebian has it powered off by request. It was booted once and
// comes back from its snapshot each time.
func TestEnds(t *testing.T) {
	needsRoot(t)
	dir := t.TempDir()
	initrd, empty := filepath.Join(dir, "initrd"), makeDisk(t, 16, func(string) {})
	modules := append(slices.Clone(bareModules), "virtio_blk")
	must(t, bareImage(initrd, nil, modules...))
	m := boot(t, image{initrd: initrd, data: empty, params: []string{modulesParam(modules...)}})
	s := m.snapshot(t)
	m.link.sever()
	withDisk := func(t *testing.T, l *link) *machine {
		s := *s
		s.img.data = filepath.Join(t.TempDir(), "disk")
		tool(t, "cp", "--sparse=always", empty, s.img.data)
		m := s.restore(t, l)
		m.waitHealth(t, stepLimit)
		m.output(t, "/guest", "mount", "/dev/vda", "/data", "ext4")
		return m
	}

	signal := func(sig unix.Signal) func(*testing.T, *machine) {
		return func(t *testing.T, m *machine) {
			if _, err := m.run(t.Context(), request("/guest", "signal", strconv.Itoa(int(sig)), "1")); err != nil {
				t.Errorf("the command that sent %v: %v", sig, err)
			}
		}
	}
	reboot := func(t *testing.T, m *machine) { must(t, m.Shutdown(t.Context(), usualGrace, true)) }
	for _, tc := range []struct {
		name string
		ask  func(*testing.T, *machine)
		want string // how the machine ends
	}{
		{"SIGTERM", signal(unix.SIGTERM), "guest-shutdown"},
		{"SIGPWR", signal(unix.SIGPWR), "guest-shutdown"},
		{"shutdown to reboot", reboot, "guest-reset"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := withDisk(t, m.link)
			checkOrder(t, m, tc.ask)
			if how := m.ended(t); how != tc.want {
				t.Errorf("the machine ended by %q, want %q", how, tc.want)
			}
			if log := m.console.String(); complains(log) {
				t.Errorf("the console says:\n%s", log)
			}
			checkClean(t, m.img.data)
			if out := tool(t, "debugfs", "-R", "cat /written", m.img.data); !strings.Contains(out, "to be kept") {
				t.Errorf("the file holds %q", out)
			}
		})
	}
	t.Run("dead disk", func(t *testing.T) { checkDeadDisk(t, withDisk(t, m.link)) })
}

// checkDeadDisk has a disk that takes next to nothing any more when the machine
// is to be powered off. It goes down all the same, though the host presses the
// keys meanwhile.
func checkDeadDisk(t *testing.T, m *machine) {
	m.output(t, "/guest", "write", "/data/lost", "never on the disk")
	const bytesPerSecond = 1
	_, err := m.mon.command("block_set_io_throttle", map[string]any{
		"device": "data", "bps": 0, "bps_rd": 0, "bps_wr": bytesPerSecond, "iops": 0, "iops_rd": 0, "iops_wr": 0,
	})
	must(t, err)
	must(t, m.Shutdown(t.Context(), 0, false))
	began := time.Now()
	for m.console.wait("file systems are not unmounted in time", 200*time.Millisecond) != nil {
		if time.Since(began) > stepLimit {
			t.Fatal("the machine waits for its disk for ever")
		}
		m.press(t, "ctrl", "alt", "delete")
	}
	if how := m.ended(t); how != "guest-shutdown" {
		t.Errorf("the machine ended by %q", how)
	}
}

// checkSignals sends init what does not end the machine.
func checkSignals(t *testing.T, m *machine) {
	but := []string{"/guest", "nag"}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGQUIT, unix.SIGPWR, unix.SIGINT} {
		but = append(but, strconv.Itoa(int(sig)))
	}
	m.output(t, but...)
	m.output(t, "/guest", "echo", "still here")
}

// checkOrder asks for the end and wants it in order: who obeys SIGTERM ends by
// that and is heard to the last word, whatever it sends init meanwhile; who does not is killed when the grace is
// over. That one uses a disk, which can be unmounted only after it.
func checkOrder(t *testing.T, m *machine, ask func(*testing.T, *machine)) {
	m.output(t, "/guest", "write", "/data/written", "to be kept")
	orderly, stubborn := m.ready(t, "orderly", "nag"), m.ready(t, "stubborn", "/data/open")
	defer orderly.Close()
	defer stubborn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), stepLimit)
	defer cancel()
	began := time.Now()
	ask(t, m)
	r, err := finish(ctx, orderly)
	if took := time.Since(began); err != nil || r.end.ExitCode != 0 || r.output != "ended by terminated\n" || took >= usualGrace {
		t.Errorf("after %v the orderly one has ended with %q, %v, %v", took, r.output, r.end, err)
	}
	r, err = finish(ctx, stubborn)
	if took := time.Since(began); err != nil || r.end.GetStatus() != "signal: killed" || took < usualGrace {
		t.Errorf("after %v the stubborn one has ended with %v, %v", took, r.end, err)
	}
}

// complains tells whether the console shows an end that was not clean.
func complains(log string) bool {
	return slices.ContainsFunc([]string{"not unmounted", "do not end", "panic"}, func(what string) bool {
		return strings.Contains(log, what)
	})
}

// ready starts a part of the tests' program and waits for its first word.
func (m *machine) ready(t *testing.T, part ...string) *client.Command {
	t.Helper()
	cmd, err := m.Start(t.Context(), request(append([]string{"/guest"}, part...)...))
	must(t, err)
	if e, err := cmd.Next(t.Context()); err != nil || e.GetData() == nil {
		t.Fatalf("%q: %v, %v", part, e, err)
	}
	return cmd
}
