package vm

import (
	"os"
	"regexp"
	"strings"
	"testing"

	pb "github.com/wrenn/envd/gen/process"
)

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("takes root")
	}
}

// TestBare boots an image that holds only the daemon, and what the kernel needs
// of it.
func TestBare(t *testing.T) {
	needsRoot(t)
	m := boot(t, image{initrd: env.bare, params: []string{"envd.modules=" + strings.Join(bareModules, ",")}})
	t.Run("boot", func(t *testing.T) { checkBoot(t, m) })
	t.Run("mounts", func(t *testing.T) { checkMounts(t, m) })
	t.Run("names", func(t *testing.T) { checkNames(t, m, "capsule") })
	t.Run("terminal", func(t *testing.T) { checkTerminal(t, m) })
}

// checkBoot wants a boot of which no step went wrong.
func checkBoot(t *testing.T, m *machine) {
	if log := m.console.String(); strings.Contains(log, "boot step did not work") || !strings.Contains(log, "envd is ready") {
		t.Errorf("the console says:\n%s", log)
	}
	if out := m.output(t, "/guest", "cat", "/proc/1/comm", "/proc/1/oom_score_adj"); out != "init\n100\n" && out != "envd\n100\n" {
		t.Errorf("init is %q", out)
	}
}

// checkMounts looks for every file system that is to be there, in its mode.
func checkMounts(t *testing.T, m *machine) {
	mounts := m.output(t, "/guest", "cat", "/proc/mounts")
	for _, want := range []string{
		`/proc proc rw,nosuid,nodev,noexec`, `/sys sysfs rw,nosuid,nodev,noexec`, `/dev devtmpfs rw,nosuid`,
		`/dev/pts devpts rw,nosuid,noexec,relatime,gid=5,mode=620,ptmxmode=666`, `/dev/shm tmpfs rw,nosuid,nodev`,
		`/tmp tmpfs rw,nosuid,nodev`, `/run tmpfs rw,nosuid,nodev.*,mode=755`, `/sys/fs/cgroup cgroup2 .*memory_recursiveprot`,
	} {
		if n := len(regexp.MustCompile(`(?m) `+want).FindAllString(mounts, -1)); n != 1 {
			t.Errorf("%d mounts of %s in\n%s", n, want, mounts)
		}
	}
	const control = "/sys/fs/cgroup/cgroup.subtree_control"
	for _, controller := range []string{"cpu", "io", "memory", "pids"} {
		if out := m.output(t, "/guest", "cat", control); !strings.Contains(out, controller) {
			t.Errorf("%s is not delegated: %q", controller, out)
		}
	}
}

// checkNames asks whether the machine has its name, an address and a resolver.
func checkNames(t *testing.T, m *machine, name string) {
	if out := m.output(t, "/guest", "resolve", "localhost"); !strings.Contains(out, "127.0.0.1") {
		t.Errorf("localhost is %q", out)
	}
	if out := m.output(t, "/guest", "cat", "/proc/sys/kernel/hostname"); out != name+"\n" {
		t.Errorf("host name %q", out)
	}
	if out := m.output(t, "/guest", "resolve", name); out != "127.0.1.1\n" {
		t.Errorf("%s is %q", name, out)
	}
	if out := m.output(t, "/guest", "cat", "/etc/resolv.conf"); !strings.HasPrefix(out, "nameserver ") {
		t.Errorf("resolver %q", out)
	}
	if out := m.output(t, "/guest", "cat", "/proc/net/route"); !strings.Contains(out, "00000000\t1600FEA9") {
		t.Errorf("no default route by the host: %s", out)
	}
}

// checkTerminal opens one as root and as nobody.
func checkTerminal(t *testing.T, m *machine) {
	req := request("/guest", "tty")
	req.Pty = &pb.PTY{Size: &pb.PTY_Size{Cols: 81, Rows: 25}}
	r, err := m.run(t.Context(), req)
	if err != nil || r.end.ExitCode != 0 || strings.TrimSpace(r.output) != "/dev/pts/0 81x25" {
		t.Errorf("%q, %v, %v", r.output, r.end, err)
	}
}
