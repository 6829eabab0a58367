package vm

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wrenn/envd/client"
)

const (
	// bootLimit bounds the time from QEMU's start to the first answer, which is
	// seconds on an idle machine.
	bootLimit = 2 * time.Minute
	// stepLimit bounds everything else that is waited for.
	stepLimit = time.Minute
	// memoryMiB is what a machine has, unless its image says otherwise.
	memoryMiB = 256
)

// image is what a machine boots.
type image struct {
	initrd string   // "" for none
	disk   string   // a raw file that is the root, "" for none
	data   string   // a raw file that is a second disk, /dev/vda, "" for none
	params []string // of the kernel, beside the rig's
	memory int      // MiB
}

// machine is a running VM. boot and restore make it; its end is expected by
// ended or caused by kill.
type machine struct {
	*client.Client
	link    *link
	console *console

	dir    string
	img    image
	mon    *monitor
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // valid once exited is closed
}

// boot starts a machine of its own on a new link and waits for its first
// answer. The test's end ends it.
func boot(t testing.TB, img image) *machine {
	t.Helper()
	l, err := openLink()
	must(t, err)
	t.Cleanup(func() {
		if err := l.close(); err != nil {
			t.Error(err)
		}
	})
	l.meta.set(map[string]string{"instanceID": "sandbox-" + l.tap, "envID": "template", "address": hostIP + ":9999"})
	began := time.Now()
	m := launch(t, img, l)
	m.waitHealth(t, bootLimit)
	t.Logf("first answer %v after QEMU's start", time.Since(began).Round(10*time.Millisecond))
	return m
}

// launch starts QEMU; extra are more of its arguments.
func launch(t testing.TB, img image, l *link, extra ...string) *machine {
	t.Helper()
	m := &machine{link: l, img: img, dir: t.TempDir(), exited: make(chan struct{})}
	m.Client = client.New(base, client.Options{HTTP: l.http})
	qmp := filepath.Join(m.dir, "qmp")
	m.cmd = exec.Command("qemu-system-x86_64", append(m.arguments(qmp), extra...)...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var complaints strings.Builder
	m.cmd.Stderr = &complaints
	out, in, err := os.Pipe()
	must(t, err)
	m.cmd.Stdout = in
	err = m.cmd.Start()
	_ = in.Close()
	must(t, err)
	m.console = collect(out)
	go func() {
		m.err = m.cmd.Wait()
		<-m.console.done
		_ = out.Close()
		close(m.exited)
	}()
	t.Cleanup(func() {
		m.kill()
		if t.Failed() {
			t.Logf("console of %s:\n%s%s", l.tap, m.console, complaints.String())
		}
	})
	m.mon, err = dialMonitor(qmp, time.Now().Add(stepLimit))
	must(t, err)
	return m
}

func (m *machine) arguments(qmp string) []string {
	memory := m.img.memory
	if memory == 0 {
		memory = memoryMiB
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", "tcg,tb-size=64", "-cpu", "max", "-smp", "1", "-m", fmt.Sprint(memory),
		"-serial", "stdio", "-qmp", "unix:" + qmp + ",server=on,wait=off",
		"-netdev", "tap,id=net,ifname=" + m.link.tap + ",script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=net,romfile=",
		"-kernel", env.kernel.image,
	}
	params := append([]string{"console=ttyS0", "quiet", "panic=1"}, m.img.params...)
	if m.img.initrd != "" {
		args = append(args, "-initrd", m.img.initrd)
	}
	if m.img.disk != "" {
		args = append(args, "-drive", "if=none,id=disk,format=raw,file="+m.img.disk,
			"-device", "nvme,drive=disk,serial=root")
		params = append(params, "root=/dev/nvme0n1", "rw")
	}
	if m.img.data != "" {
		// Not another nvme, which QEMU cannot save.
		args = append(args, "-drive", "if=none,id=data,format=raw,file="+m.img.data,
			"-device", "virtio-blk-pci,drive=data")
	}
	return append(args, "-append", strings.Join(params, " "))
}

func (m *machine) waitHealth(t testing.TB, limit time.Duration) {
	t.Helper()
	for end := time.Now().Add(limit); ; {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err := m.Health(ctx)
		cancel()
		if err == nil {
			return
		}
		select {
		case <-m.exited:
			t.Fatalf("the machine ended before it answered: %v", m.err)
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("no answer: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// kill ends QEMU as a host does that has given up.
func (m *machine) kill() {
	_ = m.cmd.Process.Kill()
	<-m.exited
	if m.mon != nil {
		_ = m.mon.conn.Close()
	}
	m.link.fresh()
}

// press presses keys at once, as a host does.
func (m *machine) press(t testing.TB, keys ...string) {
	t.Helper()
	var list []map[string]string
	for _, k := range keys {
		list = append(list, map[string]string{"type": "qcode", "data": k})
	}
	_, err := m.mon.command("send-key", map[string]any{"keys": list})
	must(t, err)
}

// ended waits until the guest has ended the machine, and tells how: it is off
// after "guest-shutdown", and after "guest-reset" a QEMU without -no-reboot would
// start it again.
func (m *machine) ended(t testing.TB) (reason string) {
	t.Helper()
	must(t, m.mon.conn.SetDeadline(time.Now().Add(stepLimit)))
	for m.mon.in.Scan() {
		var e struct {
			Event string `json:"event"`
			Data  struct {
				Reason string `json:"reason"`
			} `json:"data"`
		}
		must(t, json.Unmarshal(m.mon.in.Bytes(), &e))
		if e.Event == "SHUTDOWN" {
			reason = e.Data.Reason
		}
	}
	select {
	case <-m.exited:
	case <-time.After(stepLimit):
		t.Fatalf("the machine has not ended; %q", reason)
	}
	if m.err != nil {
		t.Errorf("QEMU: %v", m.err)
	}
	return reason
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
