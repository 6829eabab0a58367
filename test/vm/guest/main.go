// Command guest is the program that tests run inside a machine which has no
// other: each of its parts is what a shell and its tools would do elsewhere.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/test/vm/pattern"
)

// parts are what the first argument names.
var parts = map[string]func(args []string) error{
	"cat":      cat,
	"resolve":  resolve,
	"tty":      tty,
	"write":    write,
	"signal":   sendSignal,
	"stubborn": stubborn,
	"orderly":  orderly,
	"nag":      nag,
	"mount":    mount,
	"orphans":  orphans,
	"echo":     func(args []string) error { _, err := fmt.Println(strings.Join(args, " ")); return err },
	"stream":   stream,
	"count":    count,
	"clock":    clock,
	"serve":    serve,
	"eat":      eat,
	"spin":     spin,
	"bomb":     bomb,
	"call":     call,
	"random":   random,
	"env":      func(args []string) error { _, err := fmt.Println(os.Getenv(args[0])); return err },
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("which part?")
	}
	part, ok := parts[args[0]]
	if !ok {
		return fmt.Errorf("no part %q", args[0])
	}
	return part(args[1:])
}

// cat prints files, and says which does not exist.
func cat(args []string) error {
	for _, file := range args {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if _, err := os.Stdout.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// write writes a text to a file.
func write(args []string) error { return os.WriteFile(args[0], []byte(args[1]), 0o644) }

// resolve prints the addresses of a name.
func resolve(args []string) error {
	addrs, err := net.DefaultResolver.LookupHost(context.Background(), strings.Join(args, " "))
	if err != nil {
		return err
	}
	_, err = fmt.Println(strings.Join(addrs, " "))
	return err
}

// tty prints the name and the size of the terminal it runs on.
func tty([]string) error {
	name, err := os.Readlink("/proc/self/fd/0")
	if err != nil {
		return err
	}
	size, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
	if err != nil {
		return err
	}
	_, err = fmt.Printf("%s %dx%d\n", name, size.Col, size.Row)
	return err
}

// sendSignal sends a signal to a process, both by number.
func sendSignal(args []string) error {
	sig, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	return unix.Kill(pid, unix.Signal(sig))
}

// stubborn ignores what asks it to end, and says when it does. It keeps the
// given files open, to be written.
func stubborn(args []string) error {
	signal.Ignore(unix.SIGTERM, unix.SIGHUP, unix.SIGINT)
	for _, file := range args {
		if _, err := unix.Open(file, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644); err != nil {
			return err
		}
	}
	fmt.Println("here to stay")
	for {
		time.Sleep(time.Hour)
	}
}

// orderly ends when it is asked to, and has something to say then. Before that
// it nags init, when told to.
func orderly(args []string) error {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGTERM)
	fmt.Println("ready")
	sig := <-asked
	if len(args) > 0 && args[0] == "nag" {
		if err := nag(nil); err != nil {
			return err
		}
	}
	_, err := fmt.Println("ended by", sig)
	return err
}

// nag sends init all signals (signal(7)) but SIGABRT and the given ones.
func nag(but []string) error {
	const first, last = 1, 64
	for sig := first; sig <= last; sig++ {
		if sig == int(unix.SIGABRT) || slices.Contains(but, strconv.Itoa(sig)) {
			continue
		}
		if err := unix.Kill(1, unix.Signal(sig)); err != nil {
			return fmt.Errorf("send %v: %w", unix.Signal(sig), err)
		}
	}
	return nil
}

// mount mounts a disk on a directory, which it makes.
func mount(args []string) error {
	disk, dir, kind := args[0], args[1], args[2]
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return unix.Mount(disk, dir, kind, 0, "")
}

// orphans leaves that many processes to init, each in a session of its own.
// They are forked without more, which is safe while they make nothing but
// system calls: an exec of each would take the machine minutes.
func orphans(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	for range n {
		pid, _, errno := unix.RawSyscall(unix.SYS_FORK, 0, 0, 0)
		switch {
		case errno != 0:
			return errno
		case pid == 0:
			unix.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	return nil
}

// stream prints the pattern of a seed: so many bytes, or without end some
// 100 KiB a second. When it has printed all it waits to be killed.
func stream(args []string) error {
	seed, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		return err
	}
	left := uint64(1) << 63
	if len(args) > 1 {
		if left, err = strconv.ParseUint(args[1], 10, 64); err != nil {
			return err
		}
	}
	buf := make([]byte, 1000)
	for at := uint64(0); left > 0; {
		n := min(uint64(len(buf)), left)
		pattern.Fill(buf[:n], seed, at)
		if _, err := os.Stdout.Write(buf[:n]); err != nil {
			return err
		}
		at, left = at+n, left-n
		if len(args) == 1 {
			time.Sleep(10 * time.Millisecond)
		}
	}
	for {
		time.Sleep(time.Hour)
	}
}

// count tells how many bytes came in.
func count([]string) error {
	n, err := io.Copy(io.Discard, os.Stdin)
	if err != nil {
		return err
	}
	_, err = fmt.Println(n)
	return err
}

// clock prints the time, in nanoseconds since 1970.
func clock([]string) error {
	_, err := fmt.Println(time.Now().UnixNano())
	return err
}

// serve greets whoever connects.
func serve(args []string) error {
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		_, _ = conn.Write([]byte("from inside\n"))
		_ = conn.Close()
	}
}

// eat takes so many MiB of memory, and uses them.
func eat(args []string) error {
	mib, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	var eaten [][]byte
	for range mib {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += os.Getpagesize() {
			b[i] = 1
		}
		eaten = append(eaten, b)
	}
	runtime.KeepAlive(eaten)
	return nil
}

// spin uses the processor for so long.
func spin(args []string) error {
	d, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	for end := time.Now().Add(d); time.Now().Before(end); {
		continue
	}
	return nil
}

// bomb forks as often as it may, and tries for ever. It says how many children
// it has when it meets the limit first.
func bomb([]string) error {
	met := false
	for n := 0; ; {
		pid, _, errno := unix.RawSyscall(unix.SYS_FORK, 0, 0, 0)
		switch {
		case errno == 0 && pid > 0:
			n++
		case errno != 0 && !met:
			met = true
			fmt.Println(n)
		case errno == 0:
			for {
				unix.RawSyscall(unix.SYS_PAUSE, 0, 0, 0)
			}
		}
	}
}

// call sends a request without a body to the daemon, by TCP, by vsock or by a
// unix socket, and prints the answer.
func call(args []string) error {
	network, addr, request := args[0], args[1], args[2]
	conn, err := dial(network, addr)
	if err != nil {
		return fmt.Errorf("connect by %s to %s: %w", network, addr, err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: daemon\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", request); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, conn)
	return err
}

func dial(network, addr string) (io.ReadWriteCloser, error) {
	if network != "vsock" {
		return net.Dial(network, addr)
	}
	port, err := strconv.ParseUint(addr, 10, 32)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL, Port: uint32(port)}); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), network), nil
}

// random prints random bytes of the kernel's.
func random([]string) error {
	var b [32]byte
	if _, err := unix.Getrandom(b[:], 0); err != nil {
		return err
	}
	_, err := fmt.Printf("%x\n", b)
	return err
}
