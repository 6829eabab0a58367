package wire

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestContainerInit runs the daemon as PID 1 of a container: as its init it
// adopts what loses its parent, but the kernel protects the machine's alone.
func TestContainerInit(t *testing.T) {
	t.Parallel()
	ownBinary(t)
	entry := filepath.Join(t.TempDir(), "entrypoint")
	script := "#!/bin/sh\nmount --make-rprivate / && mount -t proc proc /proc && exec " + program + ` "$@"` + "\n"
	must(t, os.WriteFile(entry, []byte(script), 0o755))
	d := &daemon{name: "container", program: entry, attr: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}}
	must(t, d.start())
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Errorf("%v\n%s", err, d.log)
		}
	})
	c := callerOf(t, d, "connect-proto-h2c")
	ctx := bounded(t)

	scores := strings.Fields(c.output(ctx, sh("cat /proc/1/oom_score_adj /proc/self/oom_score_adj; readlink /proc/1/exe")))
	if len(scores) != 3 || scores[1] != "100" || scores[2] != program {
		t.Fatalf("PID 1 and a command: %q", scores)
	}
	refused := strings.Contains(d.log.String(), "the daemon may be killed when memory runs out")
	if protected := scores[0] == "-1000"; protected == refused {
		t.Errorf("the daemon's score is %s, and the log says:\n%s", scores[0], d.log)
	}

	f := c.start(ctx, sh("setsid sleep 1000 & (sleep 1000 &); echo up; exec sleep 1000")).until("up\n")
	c.must(c.signal(ctx, pid(f.pid), 9))
	f.rest()
	waitUntil(t, "only the daemon and the shell that counts are left", func() bool {
		return c.output(ctx, sh("set -- /proc/[0-9]*; echo $#")) == "2\n"
	})
}
