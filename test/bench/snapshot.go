package main

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"
)

// snapshots measures a prepare with a clean page cache, the first request after
// it, and the anonymous memory of a daemon that has run a few commands, never
// many at a time.
func snapshots(b *bench) ([]row, error) {
	d, err := b.daemon()
	if err != nil {
		return nil, err
	}
	defer d.stop()
	// One after another: what is loaded once is loaded, and some is garbage.
	for range 5 {
		if _, err := clients(d.addr, 1, time.Millisecond); err != nil {
			return nil, err
		}
	}
	if _, err := timeRequest(d.addr, http.MethodPost, "/snapshot/prepare", http.StatusNoContent); err != nil {
		return nil, err
	}
	memory, err := anonymous(d.pid())
	if err != nil {
		return nil, err
	}
	var prepare, first []time.Duration
	for range pick(b, 30, 3) {
		unix.Sync() // clean; others on the machine may dirty it again
		took, err := timeRequest(d.addr, http.MethodPost, "/snapshot/prepare", http.StatusNoContent)
		if err != nil {
			return nil, err
		}
		prepare = append(prepare, took)
		if took, err = timeRequest(d.addr, http.MethodGet, "/health", http.StatusOK); err != nil {
			return nil, err
		}
		first = append(first, took)
	}
	return []row{
		absolute("prepare for a snapshot", "ms", millis(median(prepare)), 20),
		absolute("first request after it", "ms", millis(median(first)), 5),
		absolute("anonymous after prepare", "KiB", memory, 2.5*1024),
	}, nil
}

// timeRequest times a request on a connection of its own, from the dial to the
// end of the answer.
func timeRequest(addr, method, path string, status int) (time.Duration, error) {
	began := time.Now()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n\r\n", method, path); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	defer res.Body.Close()
	if res.StatusCode != status {
		return 0, fmt.Errorf("%s: status %s", path, res.Status)
	}
	return time.Since(began), nil
}
