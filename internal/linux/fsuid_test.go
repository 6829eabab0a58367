package linux

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	testUID = 42001
	testGID = 42002
)

// The runtime never ends the main thread. Keep it to the main goroutine, so that
// no test runs there.
func init() { runtime.LockOSThread() }

// status are lines of the calling thread's /proc status.
func status(t *testing.T, keys ...string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		for _, key := range keys {
			if rest, ok := strings.CutPrefix(line, key+":"); ok {
				out = append(out, key+" "+strings.Join(strings.Fields(rest), " "))
			}
		}
	}
	return strings.Join(out, "; ")
}

func TestDoAs(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	keys := []string{"Uid", "Gid", "Groups", "CapEff", "CapPrm"}
	before := status(t, keys...)

	confined := FSIdentity{UID: testUID, GID: testGID, Groups: []uint32{7, 9}}
	if err := DoAs(confined, func() error {
		got := status(t, "Uid", "Gid", "Groups", "CapEff")
		if want := "Uid 0 0 0 42001; Gid 0 0 0 42002; Groups 7 9; CapEff 0000000000000000"; got != want {
			t.Errorf("confined: %s\nwant %s", got, want)
		}
		_, err := os.ReadFile("/etc/shadow")
		if !errors.Is(err, os.ErrPermission) {
			t.Errorf("read /etc/shadow: %v", err)
		}
		return DoAs(confined, func() error {
			if inner := status(t, "Uid", "Gid", "Groups", "CapEff"); inner != got {
				t.Errorf("nested: %s, want %s", inner, got)
			}
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	if after := status(t, keys...); after != before {
		t.Errorf("after: %s\nbefore: %s", after, before)
	}

	path := filepath.Join(t.TempDir(), "f")
	if err := DoAs(FSIdentity{UID: testUID, GID: testGID, KeepCapabilities: true}, func() error {
		if got, want := status(t, "CapEff", "Groups"), status(t, "CapPrm"); !strings.HasSuffix(want, strings.Fields(got)[len(strings.Fields(got))-1]) {
			t.Errorf("owner only: %s, permitted %s", got, want)
		}
		return os.WriteFile(path, nil, 0o600)
	}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Uid != testUID || st.Gid != testGID {
		t.Errorf("owner %d:%d, %v", st.Uid, st.Gid, err)
	}
	if after := status(t, keys...); after != before {
		t.Errorf("after: %s\nbefore: %s", after, before)
	}
}

func TestDoAsRestoresAfterPanic(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := status(t, "Uid", "Gid", "Groups", "CapEff")
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic is lost")
			}
		}()
		_ = DoAs(FSIdentity{UID: testUID, GID: testGID}, func() error { panic("in fn") })
	}()
	if after := status(t, "Uid", "Gid", "Groups", "CapEff"); after != before {
		t.Errorf("after: %s\nbefore: %s", after, before)
	}
}

// TestDoAsConfinesOneThread looks at another goroutine meanwhile.
func TestDoAsConfinesOneThread(t *testing.T) {
	err := DoAs(FSIdentity{UID: testUID, GID: testGID}, func() error {
		result := make(chan error)
		go func() {
			_, err := os.ReadFile("/etc/shadow")
			result <- err
		}()
		return <-result
	})
	if err != nil {
		t.Errorf("a goroutine beside: %v", err)
	}
}

// TestDoAsDiscardsThread takes away what it needs to be root again: the
// goroutine ends, and its thread with it.
func TestDoAsDiscardsThread(t *testing.T) {
	tid := make(chan int, 1)
	done := make(chan bool)
	go func() {
		returned := false
		defer func() { done <- returned }()
		_ = DoAs(FSIdentity{UID: testUID, GID: testGID, KeepCapabilities: true}, func() error {
			tid <- unix.Gettid()
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, testUID, testUID, testUID); errno != 0 {
				return errno
			}
			return setCapabilities(capabilities{})
		})
		returned = true
	}()
	if <-done {
		t.Fatal("DoAs returned on a thread that it could not restore")
	}
	task := "/proc/self/task/" + strconv.Itoa(<-tid)
	for limit := time.Now().Add(5 * time.Second); ; runtime.Gosched() {
		if _, err := os.Stat(task); errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(limit) {
			t.Fatal("the thread lives on")
		}
	}
}
