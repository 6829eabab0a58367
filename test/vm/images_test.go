package vm

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/client"
	pb "github.com/wrenn/envd/gen/process"
)

// unpacked is a directory of packages that scripts/install-test-deps unpacked.
func unpacked(t testing.TB, name string) string {
	t.Helper()
	cache, err := cacheDir()
	must(t, err)
	dir := filepath.Join(cache, name)
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("%v: run scripts/install-test-deps", err)
	}
	return dir
}

// TestDebian boots a small Debian from an ext4 disk, into which the project's
// script has put the daemon, and wants the disk whole after a shutdown.
func TestDebian(t *testing.T) {
	needsRoot(t)
	disk := makeDisk(t, 160, func(dir string) {
		tool(t, "cp", "-a", unpacked(t, "debian")+"/.", dir)
		for _, name := range []string{"passwd", "group"} { // as its installer does
			copyFile(t, filepath.Join(dir, "usr/share/base-passwd", name+".master"), filepath.Join(dir, "etc", name), 0o644)
		}
		install(t, dir, bareModules...)
	})
	tool(t, "../../dist/install-into-image", "--init", disk, env.envd)
	m := boot(t, image{disk: disk, params: []string{modulesParam(bareModules...), "envd.hostname=box"}})
	t.Run("boot", func(t *testing.T) { checkBoot(t, m) })
	t.Run("mounts", func(t *testing.T) { checkMounts(t, m, "/ ext4 rw") })
	t.Run("names", func(t *testing.T) { checkNames(t, m, "box") })
	t.Run("shell", func(t *testing.T) { checkShell(t, m) })
	checkServices(t, m)
	t.Run("shutdown", func(t *testing.T) { checkShutdown(t, m, disk) })
}

// checkShell uses Debian's own programs, as root and as another user.
func checkShell(t *testing.T, m *machine) {
	// <() takes /dev/fd, and $(hostname -i)'s like a host name that resolves.
	if out := m.output(t, "bash", "-lc", `cat <(echo "$HOSTNAME $PATH"); id -un; stty -a </dev/null 2>&1 | tail -1`); !strings.HasPrefix(out, "box /") || !strings.Contains(out, "root") {
		t.Errorf("root's shell says %q", out)
	}
	if out := m.output(t, "bash", "-c", "ulimit -Sn; ulimit -Hn"); out != "1024\n524288\n" {
		t.Errorf("limits on open files: %q", out)
	}
	nobody := client.New(base, client.Options{HTTP: m.link.http, User: "nobody"})
	req := request("bash", "-c", `id -un; tty; echo "$HOME"; sleep 100 & jobs`)
	req.Pty = &pb.PTY{Size: &pb.PTY_Size{Cols: 80, Rows: 24}}
	cmd, err := nobody.Start(t.Context(), req)
	must(t, err)
	defer cmd.Close()
	r, err := finish(t.Context(), cmd)
	if err != nil || !strings.HasPrefix(r.output, "nobody\r\n/dev/pts/0\r\n/nonexistent\r\n") || !strings.Contains(r.output, "Running") {
		t.Errorf("nobody's terminal says %q, %v", r.output, err)
	}
}

// TestBusybox boots an image whose only programs are those of busybox and the
// daemon, and kills the daemon in the end: the host sees why it died, the stack
// coming to the console before the machine goes down, which it does by itself.
func TestBusybox(t *testing.T) {
	needsRoot(t)
	m := boot(t, image{initrd: busyboxImage(t, "/sbin/envd", nil), params: []string{modulesParam(bareModules...)}})
	checkBoot(t, m)
	if out := m.output(t, "sh", "-lc", "id -u; hostname; for i in 1 2 3; do echo $i; done | tail -n 1"); out != "0\ncapsule\n3\n" {
		t.Errorf("the shell says %q", out)
	}
	if out := m.output(t, "sh", "-c", "tty; nslookup localhost >/dev/null; ps | wc -l"); !strings.HasPrefix(out, "not a tty\n") {
		t.Errorf("the shell says %q", out)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { // without an end: it goes with the daemon
		_, _ = m.run(ctx, request("kill", "-"+strconv.Itoa(int(unix.SIGABRT)), "1"))
	})
	defer wg.Wait()
	defer cancel()
	for _, want := range []string{"SIGABRT: abort", "daemon.Run(", "Attempted to kill init!"} {
		if err := m.console.wait(want, stepLimit); err != nil {
			t.Error(err)
		}
	}
	if how := m.ended(t); how != "guest-panic" && how != "guest-reset" {
		t.Errorf("the machine ended by %q", how)
	}
}

// busyboxImage makes an initramfs of busybox, with init as that.
func busyboxImage(t testing.TB, init string, more map[string]string) string {
	t.Helper()
	busybox := filepath.Join(unpacked(t, "busybox"), "bin/busybox")
	applets, err := exec.Command(busybox, "--list-full").Output()
	must(t, err)
	files, err := env.kernel.closure(bareModules...)
	must(t, err)
	to := filepath.Join(t.TempDir(), "initramfs")
	must(t, initramfs(to, func(a *archive) {
		a.copyFile("bin/busybox", busybox, 0o755)
		for name := range strings.FieldsSeq(string(applets)) {
			if name != "bin/busybox" {
				a.link(name, "/bin/busybox")
			}
		}
		a.copyFile("sbin/envd", env.envd, 0o755)
		a.copyFile("guest", env.guest, 0o755)
		a.link("init", init)
		for name, text := range more {
			a.file(name, 0o755, []byte(text))
		}
		for _, file := range files {
			a.copyFile(env.kernel.inImage(file), file, 0o644)
		}
	}))
	return to
}

// networkUp is a script of busybox for images whose init does not do it.
const networkUp = `
for round in 1 2 3 4 5; do # each loads what the one before made possible
  find /lib/modules -name '*.ko' -exec insmod {} \; 2>/dev/null
done
ip link set lo up
ip addr add 169.254.0.21/30 dev eth0
ip link set eth0 up
ip route add default via 169.254.0.22
`

// TestService has busybox as init, and the daemon as what that keeps running.
func TestService(t *testing.T) {
	needsRoot(t)
	m := boot(t, image{initrd: busyboxImage(t, "/bin/busybox", map[string]string{
		"etc/inittab": "::sysinit:/etc/rc\n::respawn:/sbin/envd\n",
		"etc/rc": `#!/bin/sh
mkdir -p /proc /sys /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t cgroup2 cgroup /sys/fs/cgroup
` + networkUp,
	})})
	out := m.output(t, "sh", "-c", "cat /proc/1/comm; cat /proc/$(pidof envd)/oom_score_adj; hostname")
	if out != "init\n-1000\n(none)\n" {
		t.Errorf("init, the daemon's score and the host name are %q", out)
	}
	if err := m.Shutdown(t.Context(), 0, false); err == nil || !strings.Contains(err.Error(), "501") {
		t.Errorf("the daemon takes a machine down that is not its own: %v", err)
	}
	// Killed, it comes back: its init sees to that.
	pid := m.output(t, "pidof", "envd")
	m.output(t, "sh", "-c", "(sleep 0.2; kill -9 "+strings.TrimSpace(pid)+") >/dev/null 2>&1 &")
	must(t, m.console.wait("envd is ready", stepLimit))
}
