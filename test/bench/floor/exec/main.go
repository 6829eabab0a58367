// Command exec is the floor of running commands: fork, exec and wait, without
// output, from a bare Go program.
//
// For each line "workers nanoseconds" on standard input it runs /bin/true
// again and again from that many goroutines for that long, and prints how many
// it were, the time for all and the median of one, in nanoseconds.
package main

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

func main() {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		fail(err)
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var workers int
		var length time.Duration
		if _, err := fmt.Sscan(in.Text(), &workers, (*int64)(&length)); err != nil {
			fail(err)
		}
		var (
			wg  sync.WaitGroup
			mu  sync.Mutex
			all []time.Duration
		)
		began := time.Now()
		for range workers {
			wg.Go(func() {
				took := work(null.Fd(), began.Add(length))
				mu.Lock()
				defer mu.Unlock()
				all = append(all, took...)
			})
		}
		wg.Wait()
		took := time.Since(began)
		slices.Sort(all)
		fmt.Println(len(all), took.Nanoseconds(), all[len(all)/2].Nanoseconds())
	}
}

// work runs commands until the given time, at least one.
func work(null uintptr, until time.Time) (took []time.Duration) {
	attr := &syscall.ProcAttr{Env: []string{"PATH=/bin"}, Files: []uintptr{null, null, null}}
	for now := time.Now(); ; {
		pid, err := syscall.ForkExec("/bin/true", []string{"true"}, attr)
		if err != nil {
			fail(err)
		}
		for {
			var ws syscall.WaitStatus
			_, err := syscall.Wait4(pid, &ws, 0, nil)
			if err == syscall.EINTR {
				continue
			}
			if err != nil || ws != 0 {
				fail(fmt.Errorf("wait: %w, status %d", err, ws))
			}
			break
		}
		began := now
		now = time.Now()
		took = append(took, now.Sub(began))
		if now.After(until) {
			return took
		}
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
