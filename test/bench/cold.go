package main

import (
	"net"
	"strconv"
	"time"
)

// coldStart compares the time from the start of the program to its first
// answer to GET /health with that of a bare TCP server, and with that of a bare
// connect-go server: what a daemon that speaks these protocols cannot be without.
func coldStart(b *bench) ([]row, error) {
	var ours, floor, bare []time.Duration
	for range pick(b, 30, 3) {
		for _, side := range []struct {
			took *[]time.Duration
			name string
			args []string
		}{
			{&ours, "envd", []string{"--isnotfc", "--cgroup-root", b.group}},
			{&floor, "listen", nil},
			{&bare, "rpc", nil},
		} {
			took, err := b.timeStart(side.name, side.args...)
			if err != nil {
				return nil, err
			}
			*side.took = append(*side.took, took)
		}
	}
	took := millis(median(ours))
	return []row{
		limit("cold start to /health", "ms", took, millis(median(floor)), 1.5),
		limit("same, bare connect-go", "ms", took, millis(median(bare)), 1.1),
	}, nil
}

func (b *bench) timeStart(name string, args ...string) (time.Duration, error) {
	port, err := freePort()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	s, err := b.spawn(name, append(args, "--port", strconv.Itoa(port))...)
	if err != nil {
		return 0, err
	}
	defer s.stop()
	s.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	err = s.awaitHealth()
	return time.Since(began), err
}
