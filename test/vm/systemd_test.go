package vm

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSystemd has systemd as init, and the daemon as a service that the
// project's script installed. Stopped, it ends in order and takes its commands
// along.
func TestSystemd(t *testing.T) {
	needsRoot(t)
	params := []string{"systemd.unit=multi-user.target"}
	// What takes a machine in emulation seconds and is nothing to the daemon.
	for _, unit := range []string{
		"getty.target", "systemd-logind.service", "systemd-user-sessions.service", "systemd-sysusers.service",
		"systemd-tmpfiles-setup.service", "systemd-tmpfiles-setup-dev.service", "systemd-journal-flush.service",
		"systemd-update-utmp.service", "systemd-sysctl.service", "systemd-random-seed.service", "kmod-static-nodes.service",
		"modprobe@configfs.service", "modprobe@dm_mod.service", "modprobe@drm.service", "modprobe@efi_pstore.service",
		"modprobe@fuse.service", "modprobe@loop.service", "systemd-remount-fs.service", "timers.target",
	} {
		params = append(params, "systemd.mask="+unit)
	}
	m := boot(t, image{disk: systemdDisk(t), memory: 384, params: params})
	if out := m.output(t, "bash", "-c", "cat /proc/1/comm /proc/self/cgroup"); !strings.HasPrefix(out, "systemd\n0::/system.slice/envd.service/") {
		t.Errorf("init and the group of a command are %q", out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), stepLimit)
	defer cancel()

	orderly, stubborn := m.ready(t, "orderly"), m.ready(t, "stubborn")
	defer orderly.Close()
	defer stubborn.Close()
	_, err := m.run(ctx, request("systemctl", "--no-block", "stop", "envd"))
	must(t, err)
	if r, err := finish(ctx, orderly); err != nil || r.end.ExitCode != 0 || r.output != "ended by terminated\n" {
		t.Errorf("the orderly one has ended with %q, %v, %v", r.output, r.end, err)
	}
	if r, err := finish(ctx, stubborn); err != nil || r.end.GetStatus() != "signal: killed" {
		t.Errorf("the stubborn one has ended with %v, %v", r.end, err)
	}
	must(t, m.console.wait("envd: success exited 0", stepLimit))
}

// systemdDisk makes the disk of a small Debian with systemd.
func systemdDisk(t *testing.T) string {
	busybox := filepath.Join(unpacked(t, "busybox"), "bin/busybox")
	disk := makeDisk(t, 320, func(dir string) {
		tool(t, "cp", "-a", unpacked(t, "debian")+"/.", dir)
		tool(t, "cp", "-a", unpacked(t, "systemd")+"/.", dir)
		for _, name := range []string{"passwd", "group"} {
			copyFile(t, filepath.Join(dir, "usr/share/base-passwd", name+".master"), filepath.Join(dir, "etc", name), 0o644)
		}
		install(t, dir, "virtio_pci", "virtio_net")
		copyFile(t, busybox, filepath.Join(dir, "bin/busybox"), 0o755)
		for name, text := range map[string]string{
			"etc/machine-id":                strings.Repeat("5", 32) + "\n", // else systemd takes it for its first boot
			"etc/rc":                        strings.NewReplacer("find ", "busybox find ", "insmod", "busybox insmod", "\nip ", "\nbusybox ip ").Replace(networkUp),
			"etc/systemd/system/rc.service": "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart=/bin/bash /etc/rc\n",
			"etc/systemd/system/multi-user.target.d/rc.conf": "[Unit]\nWants=rc.service\n",
			// What systemd thinks of an end.
			"etc/systemd/system/envd.service.d/told.conf": "[Service]\nExecStopPost=/bin/bash -c 'echo envd: $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS >/dev/console'\n",
		} {
			file := filepath.Join(dir, name)
			must(t, os.MkdirAll(filepath.Dir(file), 0o755))
			must(t, os.WriteFile(file, []byte(text), 0o644))
		}
	})
	tool(t, "../../dist/install-into-image", "--systemd", disk, env.envd)
	return disk
}
