package process

import (
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// poller reads the output of all processes on one goroutine: a command at rest
// costs two descriptors and no stack. What a lone reader reads itself does not
// pass through here.
type poller struct {
	epoll *linux.Epoll
	start func() // starts run, if it does not run yet

	mu    sync.Mutex
	next  int32           // guarded by mu
	pumps map[int32]*pump // guarded by mu
}

func newPoller() (*poller, error) {
	epoll, err := linux.OpenEpoll()
	if err != nil {
		return nil, fmt.Errorf("open poller: %w", err)
	}
	return &poller{epoll: epoll, pumps: make(map[int32]*pump)}, nil
}

// open makes a pump that reads fd into out, and takes file, which fd is of, over.
// The pump rings bell at each step, and calls onEnd at the end. It stands by
// until resume.
func (o *poller) open(s Stream, fd int, file io.Closer, out *Output, bell chan<- struct{}, onEnd func()) *pump {
	o.start()
	p := &pump{
		stream: s, file: file, fd: fd, out: out, poller: o, bell: bell, onEnd: onEnd,
		done: make(chan struct{}), waiting: true,
	}
	o.mu.Lock()
	for used := true; used; {
		o.next++
		p.id = o.next
		_, used = o.pumps[p.id]
	}
	o.pumps[p.id] = p
	o.mu.Unlock()
	return p
}

// remove forgets p, whose descriptor is about to be closed. The caller holds
// p.mu.
func (o *poller) remove(p *pump) {
	o.mu.Lock()
	delete(o.pumps, p.id)
	if len(o.pumps) == 0 {
		o.pumps = make(map[int32]*pump) // maps do not shrink by themselves
	}
	o.mu.Unlock()
	if p.polled {
		// A terminal may be open elsewhere for a moment: by a writer.
		_ = o.epoll.Remove(p.fd)
	}
}

// run serves the pumps until close, and ends those that are left.
func (o *poller) run() {
	var events [64]unix.EpollEvent
	for {
		n, err := o.epoll.Wait(events[:])
		if err != nil {
			break
		}
		for _, e := range events[:n] {
			o.mu.Lock()
			p := o.pumps[e.Fd]
			o.mu.Unlock()
			if p != nil {
				p.ready()
			}
		}
	}
	o.mu.Lock()
	left := make([]*pump, 0, len(o.pumps))
	for _, p := range o.pumps {
		left = append(left, p)
	}
	o.mu.Unlock()
	for _, p := range left {
		p.last()
		p.end()
	}
}

// close makes run return.
func (o *poller) close() { _ = o.epoll.Close() }
