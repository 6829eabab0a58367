package main

import "time"

// idleCPU measures the processor time of a daemon that has run a command and
// now has nothing to do.
func idleCPU(b *bench) ([]row, error) {
	d, err := b.daemon()
	if err != nil {
		return nil, err
	}
	defer d.stop()
	if _, err := clients(d.addr, 1, time.Millisecond); err != nil {
		return nil, err
	}
	// What follows a command is over after its memory was given back, and an
	// idle connection is closed.
	time.Sleep(pick(b, 5*time.Second, 100*time.Millisecond))
	length := pick(b, 10*time.Second, time.Second)
	before, err := cpuTime(d.pid())
	if err != nil {
		return nil, err
	}
	time.Sleep(length)
	after, err := cpuTime(d.pid())
	if err != nil {
		return nil, err
	}
	return []row{absolute("idle processor time", "ms/s", millis(after-before)/length.Seconds(), 0.5)}, nil
}
