package vm

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// console collects what a machine writes to its serial port.
type console struct {
	mu   sync.Mutex
	text bytes.Buffer  // guarded by mu
	more chan struct{} // guarded by mu; closed and renewed when text grows
	done chan struct{} // closed when the machine is gone
}

func collect(r io.Reader) *console {
	c := &console{more: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			c.mu.Lock()
			c.text.Write(buf[:n])
			close(c.more)
			c.more = make(chan struct{})
			c.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return c
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.ReplaceAll(c.text.String(), "\r", "")
}

// wait returns once the console has shown what, from the given place on.
func (c *console) wait(what string, limit time.Duration) error {
	over := time.After(limit)
	for {
		c.mu.Lock()
		found, more := bytes.Contains(c.text.Bytes(), []byte(what)), c.more
		c.mu.Unlock()
		if found {
			return nil
		}
		select {
		case <-more:
		case <-c.done:
			if strings.Contains(c.String(), what) {
				return nil
			}
			return fmt.Errorf("the machine ended without %q on its console", what)
		case <-over:
			return fmt.Errorf("no %q on the console", what)
		}
	}
}
