// Package vm boots real machines, in QEMU with software emulation, with the
// daemon as their init: a kernel, and an image that holds little or nothing
// else. It needs root, QEMU and the unpacked kernel package that
// scripts/install-test-deps downloads.
//
// Everything happens in a network namespace of the test's own, where the test
// is the host: it has the other end of each machine's link, and the services
// that a host offers there.
package vm

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// insideVar tells the re-executed test that it is in its own namespace.
const insideVar = "ENVD_VM_INSIDE"

// env is what all tests share.
var env struct {
	kernel *kernel
	*programs
	bare string // the initramfs with nothing but the daemon
}

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Println("skipping: takes root") // each test says so again
		os.Exit(m.Run())
	}
	if os.Getenv(insideVar) == "" {
		os.Exit(namespace())
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "envd-vm-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = prepare(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func prepare(dir string) (err error) {
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("bring loopback up: %w: %s", err, out)
	}
	if env.kernel, err = findKernel(); err != nil {
		return err
	}
	if env.programs, err = build(dir); err != nil {
		return err
	}
	env.bare = filepath.Join(dir, "bare")
	return bareImage(env.bare, nil, bareModules...)
}

// bareImage makes an initramfs of the daemon, the tests' program, more files and
// modules.
func bareImage(to string, more map[string][]byte, modules ...string) error {
	files, err := env.kernel.closure(modules...)
	if err != nil {
		return err
	}
	return initramfs(to, func(a *archive) {
		for name, content := range more {
			a.file(name, 0o644, content)
		}
		a.copyFile("init", env.envd, 0o755)
		a.link("bin/sync", "/init")
		a.copyFile("guest", env.guest, 0o755)
		for _, file := range files {
			a.copyFile(env.kernel.inImage(file), file, 0o644)
		}
	})
}

// bareModules are loaded by the daemon in the bare image: the network, vsock
// within the machine, and what tells of sockets, since a kernel would call
// modprobe for that.
var bareModules = []string{"virtio_pci", "virtio_net", "tcp_diag", "vsock_loopback"}
