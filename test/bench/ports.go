package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// forwardIP is the daemon's default.
const forwardIP = "169.254.0.21"

// isolated runs f on a thread in network and mount namespaces of its own, where
// loopback has the forward address as well. What f starts and opens itself is
// there, too.
func isolated(f func() ([]row, error)) (rows []row, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err = unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
			return
		}
		if err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return
		}
		for _, args := range [][]string{{"link", "set", "lo", "up"}, {"addr", "add", forwardIP + "/30", "dev", "lo"}} {
			if out, ipErr := exec.Command("ip", args...).CombinedOutput(); ipErr != nil {
				err = fmt.Errorf("ip %v: %w: %s", args, ipErr, out)
				return
			}
		}
		rows, err = f()
	}()
	<-done
	return rows, err
}

// forwardedPorts measures the forwarding of loopback ports: how soon one is
// reachable, how fast, and what forwarding costs at rest.
func forwardedPorts(b *bench) ([]row, error) {
	return isolated(func() ([]row, error) {
		var rows []row
		for _, measure := range []func(*bench) ([]row, error){portReachable, portSpeed, portsAtRest} {
			more, err := measure(b)
			rows = append(rows, more...)
			if err != nil {
				return rows, err
			}
		}
		return rows, nil
	})
}

// portReachable is the time from a listen to the first connection while a
// command runs, and what looking costs meanwhile.
func portReachable(b *bench) ([]row, error) {
	d, err := b.daemon()
	if err != nil {
		return nil, err
	}
	defer d.stop()
	work := &connections{addr: d.addr, n: 1}
	if err := work.start(); err != nil {
		return nil, err
	}
	defer work.close()
	before, err := cpuTime(d.pid())
	if err != nil {
		return nil, err
	}
	length := pick(b, 10*time.Second, time.Second)
	time.Sleep(length)
	after, err := cpuTime(d.pid())
	if err != nil {
		return nil, err
	}
	var took []time.Duration
	for range pick(b, 100, 5) {
		time.Sleep(rand.N(100 * time.Millisecond)) // out of step with the looks
		one, err := reach()
		if err != nil {
			return nil, err
		}
		took = append(took, one)
	}
	return []row{
		absolute("port reachable while work runs", "ms", millis(median(took)), 30),
		absolute("looking while work runs", "ms/s", millis(after-before)/length.Seconds(), 10),
	}, nil
}

// reach opens a port on loopback and waits until it is reachable.
func reach() (time.Duration, error) {
	began := time.Now()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	c, err := dialUntil(l.Addr().(*net.TCPAddr).Port)
	if err != nil {
		return 0, err
	}
	took := time.Since(began)
	return took, c.Close()
}

// dialUntil connects to a port on the forward address as soon as that works.
func dialUntil(port int) (net.Conn, error) {
	addr := net.JoinHostPort(forwardIP, strconv.Itoa(port))
	for end := time.Now().Add(startLimit); time.Now().Before(end); time.Sleep(500 * time.Microsecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s is not reachable after %v", addr, startLimit)
}

// portSpeed compares a download through a forwarded port with one through a
// bare splice proxy.
func portSpeed(b *bench) ([]row, error) {
	size := pick(b, int64(2<<30), int64(64<<20))
	d, err := b.daemon()
	if err != nil {
		return nil, err
	}
	defer d.stop()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	go send(l, size)
	f, err := b.floor("splice", l.Addr().String())
	if err != nil {
		return nil, err
	}
	defer f.stop()
	var ours, floor []float64
	for range pick(b, 7, 2) {
		c, err := dialUntil(l.Addr().(*net.TCPAddr).Port)
		if err != nil {
			return nil, err
		}
		speed, err := receive(c, size)
		if err != nil {
			return nil, err
		}
		ours = append(ours, speed)
		if c, err = net.Dial("tcp", f.addr); err != nil {
			return nil, err
		}
		if speed, err = receive(c, size); err != nil {
			return nil, err
		}
		floor = append(floor, speed)
	}
	return []row{share("forwarded download", "MiB/s", median(ours), median(floor), 0.8)}, nil
}

// send writes size bytes to each connection.
func send(l net.Listener, size int64) {
	buf := make([]byte, readBuffer)
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		for left := size; left > 0 && err == nil; {
			var n int
			n, err = c.Write(buf[:min(left, int64(len(buf)))])
			left -= int64(n)
		}
		_ = c.Close()
	}
}

// receive reads size bytes and the end, and answers the speed.
func receive(c net.Conn, size int64) (float64, error) {
	defer c.Close()
	began := time.Now()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, readBuffer))
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes of %d", n, size)
	}
	return float64(n) / (1 << 20) / time.Since(began).Seconds(), err
}

// portsAtRest measures what forwarded ports cost while nothing happens: a few
// in processor time, many in memory.
func portsAtRest(b *bench) ([]row, error) {
	d, err := b.daemon()
	if err != nil {
		return nil, err
	}
	defer d.stop()
	closeFew, err := openPorts(3)
	if err != nil {
		return nil, err
	}
	defer closeFew()
	quiet := pick(b, 12*time.Second, 100*time.Millisecond) // longer than a change is news
	time.Sleep(quiet)
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
	least, err := anonymous(d.pid())
	if err != nil {
		return nil, err
	}
	n := pick(b, 500, 20)
	closeMany, err := openPorts(n)
	if err != nil {
		return nil, err
	}
	defer closeMany()
	time.Sleep(quiet)
	most, err := anonymous(d.pid())
	if err != nil {
		return nil, err
	}
	return []row{
		absolute("idle processor time, 3 forwarded ports", "ms/s", millis(after-before)/length.Seconds(), 0.5),
		absolute(fmt.Sprintf("%d forwarded ports: anonymous each", n), "KiB", max(0.01, (most-least)/float64(n)), 64),
	}, nil
}

// openPorts listens on n ports of loopback and waits until they are forwarded.
func openPorts(n int) (closeAll func(), err error) {
	var all []net.Listener
	closeAll = func() {
		for _, l := range all {
			_ = l.Close()
		}
	}
	for range n {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			closeAll()
			return nil, err
		}
		all = append(all, l)
	}
	for _, l := range all {
		c, err := dialUntil(l.Addr().(*net.TCPAddr).Port)
		if err != nil {
			closeAll()
			return nil, err
		}
		_ = c.Close()
	}
	return closeAll, nil
}
