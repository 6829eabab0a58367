package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/guest"
	"github.com/wrenn/envd/internal/linux"
	"github.com/wrenn/envd/internal/reap"
)

// mountHelper is the name under which the daemon's binary mounts and does
// nothing else. mount(2) of a network filesystem blocks the thread that calls it
// until the server answers: only a process of its own can be given up.
const mountHelper = "envd-mount"

// What the helper does.
const (
	verbMount   = "mount"   // take an NFS mount away that is there, and mount
	verbKeep    = "keep"    // mount, if there is no NFS mount yet
	verbUnmount = "unmount" // take an NFS mount away
)

// killGrace is how long a killed helper may take to end before nobody waits
// for it any more. The reaper does.
const killGrace = time.Second

// Helper does what a process was started for that is a helper of the daemon,
// and answers its exit code. Others are not: they have other names.
func Helper(args []string) (code int, is bool) {
	if len(args) == 0 || args[0] != mountHelper {
		return 0, false
	}
	if err := runMountHelper(args[1:]); err != nil {
		fmt.Println(err)
		return 1, true
	}
	return 0, true
}

// runMountHelper takes verb, path, and for mounting source and options.
func runMountHelper(args []string) error {
	if len(args) != 4 {
		return errors.New("verb, path, source and options are needed")
	}
	verb, path, source, options := args[0], args[1], args[2], args[3]
	// The path itself is not looked at before an old mount is gone, whose
	// server may be gone, too.
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	path = filepath.Join(dir, filepath.Base(path))
	kind, err := linux.MountKind(path)
	if err != nil {
		return err
	}
	// Nothing is mounted there yet: then a link may be. It would decide where
	// the volume lands, and hide it from MountKind the next time.
	if fi, err := os.Lstat(path); kind == "" && err == nil && fi.Mode()&os.ModeSymlink != 0 {
		return fmt.Errorf("%s is a symbolic link", path)
	}
	if strings.HasPrefix(kind, "nfs") {
		if verb == verbKeep {
			return nil
		}
		if err := linux.Unmount(path); err != nil {
			return err
		}
	}
	if verb == verbUnmount {
		return nil
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	if err := linux.Mount("nfs", source, path, options); errors.Is(err, unix.ENODEV) {
		return errors.New("this kernel has no NFS client")
	} else if err != nil {
		return err
	}
	return nil
}

// mounter mounts by helpers.
type mounter struct{ reaper *reap.Reaper }

// Mount implements guest.Mounter.
func (m mounter) Mount(ctx context.Context, v guest.Mount, addr netip.Addr, keep bool) error {
	verb := verbMount
	if keep {
		verb = verbKeep
	}
	return m.run(ctx, verb, v.Path, v.Source, v.Options(addr))
}

// Unmount implements guest.Mounter.
func (m mounter) Unmount(ctx context.Context, v guest.Mount) error {
	return m.run(ctx, verbUnmount, v.Path, v.Source, "")
}

// run runs a helper, and kills it when ctx ends.
func (m mounter) run(ctx context.Context, args ...string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("run %s: %w", mountHelper, err)
	}
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		_ = w.Close()
		return fmt.Errorf("run %s: %w", mountHelper, err)
	}
	defer null.Close()
	child, err := m.reaper.Start(reap.Command{
		Path: "/proc/self/exe", Args: append([]string{mountHelper}, args...), Dir: "/",
		Stdin: linux.Descriptor(null.Fd()), Stdout: linux.Descriptor(w.Fd()), Stderr: linux.Descriptor(w.Fd()),
	})
	_ = w.Close() // the child has its own
	if err != nil {
		return fmt.Errorf("run %s: %w", mountHelper, err)
	}
	stop := context.AfterFunc(ctx, func() {
		_ = child.Signal(unix.SIGKILL)                   // ended already: fine
		_ = r.SetReadDeadline(time.Now().Add(killGrace)) // the kernel may hold it
	})
	defer stop()
	text, err := io.ReadAll(io.LimitReader(r, 4096)) // ends with the child
	switch {
	case ctx.Err() != nil:
		select {
		case <-child.Done():
		case <-time.After(killGrace):
		}
		return fmt.Errorf("run %s: %w", mountHelper, context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("run %s: %w", mountHelper, err)
	}
	switch status := child.Status().Wait; {
	case status.Exited() && status.ExitStatus() == 0:
		return nil
	case len(text) > 0:
		return errors.New(strings.TrimSpace(string(text)))
	default:
		return fmt.Errorf("run %s: wait status %#x", mountHelper, uint32(status))
	}
}
