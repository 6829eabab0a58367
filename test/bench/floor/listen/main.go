// Command listen is the floor of a cold start: a TCP server that answers each
// connection's first bytes with a fixed HTTP response, on --port.
package main

import (
	"flag"
	"fmt"
	"net"
	"os"
	"strconv"
)

var answer = []byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")

func main() {
	port := flag.Int("port", 0, "TCP port on 127.0.0.1")
	flag.Parse()
	l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(*port)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go serve(conn)
	}
}

func serve(conn net.Conn) {
	defer conn.Close()
	var request [4096]byte
	if _, err := conn.Read(request[:]); err == nil {
		_, _ = conn.Write(answer)
	}
}
