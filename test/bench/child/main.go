// Command child is the program whose output is measured: it writes as many
// bytes as its argument says to standard output, in large writes. With a
// second argument it first waits for a byte on standard input.
package main

import (
	"fmt"
	"os"
	"strconv"
)

// writeSize is the size of each write, in bytes.
const writeSize = 256 << 10

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	left, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	if len(args) > 1 {
		var b [1]byte
		if _, err := os.Stdin.Read(b[:]); err != nil {
			return err
		}
	}
	buf := make([]byte, writeSize)
	for i := range buf {
		buf[i] = byte(i)
	}
	for left > 0 {
		n, err := os.Stdout.Write(buf[:min(left, writeSize)])
		if err != nil {
			return err
		}
		left -= n
	}
	return nil
}
