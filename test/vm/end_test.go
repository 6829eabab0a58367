package vm

import (
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
	must(t, bareImage(initrd, modules...))
	m := boot(t, image{initrd: initrd, data: empty, params: []string{modulesParam(modules...)}})
	s := m.snapshot(t)
	m.link.sever()

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
			s := *s
			s.img.data = filepath.Join(t.TempDir(), "disk")
			tool(t, "cp", "--sparse=always", empty, s.img.data)
			m := s.restore(t, m.link)
			m.waitHealth(t, stepLimit)
			checkOrder(t, m, tc.ask)
			if how := m.ended(t); how != tc.want {
				t.Errorf("the machine ended by %q, want %q", how, tc.want)
			}
			if log := m.console.String(); complains(log) {
				t.Errorf("the console says:\n%s", log)
			}
			checkClean(t, s.img.data)
			if out := tool(t, "debugfs", "-R", "cat /written", s.img.data); !strings.Contains(out, "to be kept") {
				t.Errorf("the file holds %q", out)
			}
		})
	}
}

// checkOrder asks for the end and wants it in order: who obeys SIGTERM ends by
// that and is heard to the last word; who does not is killed when the grace is
// over. That one uses a disk, which can be unmounted only after it.
func checkOrder(t *testing.T, m *machine, ask func(*testing.T, *machine)) {
	m.output(t, "/guest", "mount", "/dev/vda", "/data", "ext4")
	m.output(t, "/guest", "write", "/data/written", "to be kept")
	orderly, stubborn := m.ready(t, "orderly"), m.ready(t, "stubborn", "/data/open")
	defer orderly.Close()
	defer stubborn.Close()
	began := time.Now()
	ask(t, m)
	r, err := finish(t.Context(), orderly)
	if took := time.Since(began); err != nil || r.end.ExitCode != 0 || r.output != "ended by terminated\n" || took >= usualGrace {
		t.Errorf("after %v the orderly one has ended with %q, %v, %v", took, r.output, r.end, err)
	}
	r, err = finish(t.Context(), stubborn)
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
