package daemon

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// monitorSlack is how much later than it asks for the runtime's monitor may be
// woken up.
const monitorSlack = 500 * time.Microsecond

// calmMonitor gives the runtime's monitor thread (sysmon) a timer slack. From
// the first system call after a rest that thread wakes up every 20 µs, a dozen
// times for a command, to look for goroutines that hold up others. On a virtual
// machine that is a quarter of the processor time that a command costs us.
// It takes CAP_SYS_NICE.
func calmMonitor() error {
	tid, err := monitorThread()
	if err == nil {
		slack := strconv.FormatInt(monitorSlack.Nanoseconds(), 10)
		err = os.WriteFile(fmt.Sprintf("/proc/%d/timerslack_ns", tid), []byte(slack), 0)
	}
	if err != nil {
		return fmt.Errorf("calm the runtime's monitor: %w", err)
	}
	return nil
}

// monitorThread finds that thread. It is the first that the runtime makes, and
// never ends. Thread ids count up from the first thread's, and begin anew at the
// largest there is.
func monitorThread() (tid int, err error) {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0, err
	}
	made := func(tid int) int { return (tid - os.Getpid()) & (1<<22 - 1) } // no pid is as large as that
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil || id == os.Getpid() {
			continue
		}
		if tid == 0 || made(id) < made(tid) {
			tid = id
		}
	}
	if tid == 0 {
		return 0, errors.New("there is one thread")
	}
	return tid, nil
}
