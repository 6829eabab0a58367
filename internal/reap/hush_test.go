package reap

import (
	"context"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hushed begins a hush, in which the signal is not heard.
func hushed(t *testing.T, r *Reaper) {
	t.Helper()
	began := time.Now()
	r.Hush()
	if heard(t) && time.Since(began) < hushTime {
		t.Fatal("SIGCHLD is heard after Hush")
	}
}

// heard tells whether SIGCHLD reaches the process, which has a handler for it.
func heard(t *testing.T) bool {
	t.Helper()
	var act [4]uint64 // struct kernel_sigaction: the handler comes first, 0 being the default
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), 0, uintptr(unsafe.Pointer(&act)), 8, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	return act[0] != 0
}

// A hush is over by itself, and what has ended in it is reaped though nobody
// looks.
func TestHushEnds(t *testing.T) {
	r := open(t)
	for range 20 {
		hushed(t, r)
		status(t, start(t, r, command(t, "/bin/true")))
		eventually(t, "SIGCHLD to be heard", func() bool { return heard(t) })
		status(t, start(t, r, command(t, "/bin/true")))
	}
}

// Starts that prolong a hush on and on do not keep others from being reaped.
func TestLongHush(t *testing.T) {
	r := open(t)
	orphans := r.Orphans()
	c := start(t, r, shell(t, "sleep 0.05 & exit 7"))
	reaped := func() bool { return r.Orphans() > orphans }
	for end := time.Now().Add(patience); !reaped(); time.Sleep(hushTime / 4) {
		hushed(t, r)
		if time.Now().After(end) {
			t.Fatal("the orphan is not reaped")
		}
	}
	if s := status(t, c); s.Wait.ExitStatus() != 7 {
		t.Errorf("wait status %#x", s.Wait)
	}
}

// A hush does not outlive Run, which the signal comes to.
func TestHushEndsWithRun(t *testing.T) {
	r, err := Open()
	must(t, err)
	defer func() { must(t, r.Close()) }()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	r.Hush()
	cancel()
	must(t, <-ended)
	if !heard(t) {
		t.Error("SIGCHLD is not heard")
	}
	r.Hush()
	if !heard(t) {
		t.Error("SIGCHLD is not heard after a late Hush")
	}
}
