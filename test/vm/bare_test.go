package vm

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "github.com/wrenn/envd/gen/process"
)

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("takes root")
	}
}

// modulesParam has the daemon load modules.
func modulesParam(names ...string) string { return "envd.modules=" + strings.Join(names, ",") }

// TestBare boots an image that holds only the daemon, and what the kernel needs
// of it.
func TestBare(t *testing.T) {
	needsRoot(t)
	m := boot(t, image{initrd: env.bare, params: []string{
		modulesParam(bareModules...), "--", "--vsock-port", "1024", "--unix", "/run/envd.sock", "--no-such-flag", "word",
	}})
	t.Run("boot", func(t *testing.T) { checkBoot(t, m) })
	t.Run("mounts", func(t *testing.T) { checkMounts(t, m, "/tmp tmpfs rw,nosuid,nodev") })
	t.Run("names", func(t *testing.T) { checkNames(t, m, "capsule") })
	t.Run("listeners", func(t *testing.T) { checkListeners(t, m) })
	t.Run("unknown flags", func(t *testing.T) { checkUnknownFlags(t, m) })
	checkServices(t, m)
	t.Run("sync", func(t *testing.T) { m.output(t, "/bin/sync") })
	t.Run("orphans", func(t *testing.T) { checkOrphans(t, m) })
	t.Run("signals", func(t *testing.T) { checkSignals(t, m) })
	t.Run("Ctrl-Alt-Del", func(t *testing.T) {
		m.press(t, "ctrl", "alt", "delete")
		if how := m.ended(t); how != "guest-reset" {
			t.Errorf("the machine ended by %q", how)
		}
	})
}

// checkShutdown shuts the machine down while one program ignores SIGTERM and
// another has just written a file.
func checkShutdown(t *testing.T, m *machine, disk string) {
	const grace = time.Second
	stubborn := m.ready(t, "stubborn")
	defer stubborn.Close()
	m.output(t, "/guest", "write", "/written", "to be kept")
	began := time.Now()
	must(t, m.Shutdown(t.Context(), grace, false))
	r, err := finish(t.Context(), stubborn)
	if took := time.Since(began); err != nil || r.end.GetStatus() != "signal: killed" || took < grace {
		t.Errorf("after %v the stubborn one has ended with %v, %v", took, r.end, err)
	}
	if how := m.ended(t); how != "guest-shutdown" {
		t.Errorf("the machine ended by %q", how)
	}
	if log := m.console.String(); complains(log) {
		t.Errorf("the console says:\n%s", log)
	}
	checkClean(t, disk)
	if out := tool(t, "debugfs", "-R", "cat /written", disk); !strings.Contains(out, "to be kept") {
		t.Errorf("the file holds %q", out)
	}
}

// checkBoot wants a boot of which no step went wrong.
func checkBoot(t *testing.T, m *machine) {
	must(t, m.console.wait("envd is ready", stepLimit))
	m.logTimes(t)
	if log := m.console.String(); strings.Contains(log, "boot step did not work") {
		t.Errorf("the console says:\n%s", log)
	}
	if out := m.output(t, "/guest", "cat", "/proc/1/comm", "/proc/1/oom_score_adj"); out != "init\n0\n" {
		t.Errorf("init is %q", out)
	}
}

// checkListeners calls by vsock, by a unix socket and by the addresses of the
// machine, that of its network card included, from inside: what is for the host
// alone is refused there.
// logTimes tells how long the boot took by the guest's own clock.
func (m *machine) logTimes(t *testing.T) {
	t.Helper()
	for line := range strings.Lines(m.console.String()) {
		var up struct {
			Msg    string        `json:"msg"`
			Served time.Duration `json:"served_after"`
			Envd   time.Duration `json:"of_which_envd"`
		}
		if json.Unmarshal([]byte(line), &up) == nil && up.Msg == "the machine is up" {
			t.Logf("served %v after the kernel's start, of which %v are the daemon's; its anonymous memory is %d KiB",
				up.Served.Round(time.Millisecond), up.Envd.Round(time.Millisecond), m.anonymous(t)>>10)
			if up.Served <= 0 || up.Envd <= 0 || up.Envd >= up.Served {
				t.Errorf("times %+v", up)
			}
			return
		}
	}
	t.Error("the console does not tell how long the boot took")
}

// checkListeners calls by vsock and by a unix socket, from inside: what is for
// the host alone is refused there.
func checkListeners(t *testing.T, m *machine) {
	for _, by := range [][]string{
		{"vsock", "1024"}, {"unix", "/run/envd.sock"}, {"tcp", "127.0.0.1:49983"}, {"tcp", "[::1]:49983"}, {"tcp", guestIP + ":49983"},
	} {
		call := append([]string{"/guest", "call"}, by...)
		if out := m.output(t, append(call, "GET /health")...); !strings.HasPrefix(out, "HTTP/1.1 200 OK") || !strings.Contains(out, `"version"`) {
			t.Errorf("health by %s: %s", by, out)
		}
		for _, path := range []string{"/init", "/shutdown", "/snapshot/prepare"} {
			if out := m.output(t, append(call, "POST "+path)...); !strings.HasPrefix(out, "HTTP/1.1 403") {
				t.Errorf("%s by %s: %s", path, by, out)
			}
		}
	}
}

// checkUnknownFlags looks for one line on each that the kernel's command line
// had; the daemon that says them has come up.
func checkUnknownFlags(t *testing.T, m *machine) {
	log := m.console.String()
	for _, want := range []string{"flag provided but not defined: -no-such-flag\n", `argument "word" is ignored` + "\n"} {
		if n := strings.Count(log, want); n != 1 {
			t.Errorf("%d times %q on the console:\n%s", n, want, log)
		}
	}
}

// checkMounts looks for every file system that is to be there, in its mode.
func checkMounts(t *testing.T, m *machine, more string) {
	mounts := m.output(t, "/guest", "cat", "/proc/mounts")
	for _, want := range []string{
		`/proc proc rw,nosuid,nodev,noexec`, `/sys sysfs rw,nosuid,nodev,noexec`, `/dev devtmpfs rw,nosuid`,
		`/dev/pts devpts rw,nosuid,noexec,relatime,gid=5,mode=620,ptmxmode=666`, `/dev/shm tmpfs rw,nosuid,nodev`,
		`/run tmpfs rw,nosuid,nodev.*,mode=755`, `/sys/fs/cgroup cgroup2 .*memory_recursiveprot`, more,
	} {
		if n := len(regexp.MustCompile(`(?m) `+want).FindAllString(mounts, -1)); n != 1 {
			t.Errorf("%d mounts of %s in\n%s", n, want, mounts)
		}
	}
	control := m.output(t, "/guest", "cat", "/sys/fs/cgroup/cgroup.subtree_control")
	for _, controller := range []string{"cpu", "io", "memory", "pids"} {
		if !strings.Contains(control, controller) {
			t.Errorf("%s is not delegated: %q", controller, control)
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

// checkTerminal opens one.
func checkTerminal(t *testing.T, m *machine) {
	req := request("/guest", "tty")
	req.Pty = &pb.PTY{Size: &pb.PTY_Size{Cols: 81, Rows: 25}}
	r, err := m.run(t.Context(), req)
	if err != nil || r.end.ExitCode != 0 || strings.TrimSpace(r.output) != "/dev/pts/0 81x25" {
		t.Errorf("%q, %v, %v", r.output, r.end, err)
	}
}

// checkOrphans leaves 1,000 processes to init, and wants to see none of them
// later.
func checkOrphans(t *testing.T, m *machine) {
	const number = 1000
	cmd, err := m.Start(t.Context(), request("/guest", "orphans", strconv.Itoa(number)))
	must(t, err)
	defer cmd.Close()
	if r, err := finish(t.Context(), cmd); err != nil || r.end.ExitCode != 0 {
		t.Fatalf("%v, %v", r, err)
	}
	for end := time.Now().Add(stepLimit); ; {
		r, pid := m.children(t)
		if pid < int(cmd.Pid())+number {
			t.Fatalf("process %d comes after %d and its orphans: there were not so many", pid, cmd.Pid())
		}
		if len(r) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("children of init are left: %v", r)
		}
	}
}

// children lists those of init but for the process that looks, whose pid it
// answers as well.
func (m *machine) children(t *testing.T) (others []string, pid int) {
	t.Helper()
	out := m.output(t, "/guest", "cat", "/proc/1/task/1/children", "/proc/self/stat")
	children, stat, _ := strings.Cut(out, " (")
	all := strings.Fields(children)
	pid, err := strconv.Atoi(all[len(all)-1]) // stat begins with the pid
	if err != nil {
		t.Fatalf("%v in %q (%s", err, children, stat)
	}
	return slices.DeleteFunc(all, func(s string) bool { return s == strconv.Itoa(pid) }), pid
}
