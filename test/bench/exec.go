package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/wrenn/envd/gen/process/processconnect"
)

// trueProgram does nothing, successfully: running it costs what starting costs.
const trueProgram = "/bin/true"

// burst is many commands, one after the other in each of some workers.
type burst struct {
	count  int
	took   time.Duration // of it all
	median time.Duration // of one command
}

func (r burst) rate() float64 { return float64(r.count) / r.took.Seconds() }

// execLatency compares one command through the daemon, from the Start request
// to the end of its stream on a kept-alive connection, with plain fork, exec
// and wait.
func execLatency(b *bench) ([]row, error) {
	ours, floor, err := b.bursts(1)
	if err != nil {
		return nil, err
	}
	pairMedian := func(all []burst) float64 {
		var each []time.Duration
		for _, r := range all {
			each = append(each, r.median)
		}
		return micros(median(each))
	}
	return []row{limit("/bin/true end to end", "µs", pairMedian(ours), pairMedian(floor), 1.6)}, nil
}

// execRate compares the rate of 16 clients with plain fork, exec and wait from
// 16 goroutines.
func execRate(b *bench) ([]row, error) {
	ours, floor, err := b.bursts(16)
	if err != nil {
		return nil, err
	}
	medianRate := func(all []burst) float64 {
		var each []float64
		for _, r := range all {
			each = append(each, r.rate())
		}
		return median(each)
	}
	return []row{share("/bin/true, 16 clients", "/s", medianRate(ours), medianRate(floor), 0.55)}, nil
}

// execBesideIdle compares one command beside many that are at rest with one that
// is alone: what a start takes must not grow with what runs.
func execBesideIdle(b *bench) ([]row, error) {
	d, err := b.daemon()
	if err != nil {
		return nil, err
	}
	defer d.stop()
	n := pick(b, 500, 50)
	crowd := connections{addr: d.addr, n: n}
	defer crowd.close()
	alone, err := medianBurst(b, d)
	if err != nil {
		return nil, err
	}
	if err := crowd.start(); err != nil {
		return nil, err
	}
	time.Sleep(settleTime)
	beside, err := medianBurst(b, d)
	if err != nil {
		return nil, err
	}
	if err := crowd.end(); err != nil {
		return nil, err
	}
	return []row{limit(fmt.Sprintf("/bin/true beside %d idle commands", n), "µs", beside, alone, 1.25)}, nil
}

// medianBurst is the time of one command of one client, in microseconds.
func medianBurst(b *bench, d *server) (float64, error) {
	var each []time.Duration
	for range pick(b, 5, 2) {
		r, err := clients(d.addr, 1, pick(b, time.Second, 200*time.Millisecond))
		if err != nil {
			return 0, err
		}
		each = append(each, r.median)
	}
	return micros(median(each)), nil
}

// bursts runs bursts in turns, through the daemon and as the floor.
func (b *bench) bursts(workers int) (ours, floor []burst, err error) {
	d, err := b.daemon()
	if err != nil {
		return nil, nil, err
	}
	defer d.stop()
	f, err := b.spawn("exec")
	if err != nil {
		return nil, nil, err
	}
	defer f.stop()

	length := pick(b, time.Second, 200*time.Millisecond)
	if _, err := clients(d.addr, workers, length/4); err != nil { // warm up
		return nil, nil, err
	}
	for range pick(b, 7, 2) {
		r, err := clients(d.addr, workers, length)
		if err != nil {
			return nil, nil, err
		}
		ours = append(ours, r)
		if r, err = f.burst(workers, length); err != nil {
			return nil, nil, err
		}
		floor = append(floor, r)
	}
	return ours, floor, nil
}

// burst makes the floor run one, in its own process.
func (s *server) burst(workers int, length time.Duration) (r burst, err error) {
	if _, err := fmt.Fprintln(s.in, workers, length.Nanoseconds()); err != nil {
		return r, fmt.Errorf("ask floor: %w", err)
	}
	line, err := s.out.ReadString('\n')
	if err == nil {
		_, err = fmt.Sscan(line, &r.count, (*int64)(&r.took), (*int64)(&r.median))
	}
	if err != nil {
		return r, fmt.Errorf("floor: %w\n%s", err, s.log.String())
	}
	return r, nil
}

// clients runs a burst through the daemon: one connection for each worker.
func clients(addr string, workers int, length time.Duration) (burst, error) {
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		all    []time.Duration
		failed error
	)
	began := time.Now()
	for range workers {
		wg.Go(func() {
			took, err := oneClient(addr, began.Add(length))
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return burst{}, failed
	}
	return burst{count: len(all), took: time.Since(began), median: median(all)}, nil
}

// oneClient runs commands until the given time, at least one.
func oneClient(addr string, until time.Time) (took []time.Duration, err error) {
	c, err := dial(addr, 4<<10)
	if err != nil {
		return nil, err
	}
	defer c.close()
	request := envelope(command(trueProgram))
	for now := time.Now(); ; {
		if _, err := c.start(processconnect.ProcessStartProcedure, request); err != nil {
			return nil, err
		}
		if _, err := c.finish(); err != nil {
			return nil, err
		}
		began := now
		now = time.Now()
		took = append(took, now.Sub(began))
		if now.After(until) {
			return took, nil
		}
	}
}
