// Package ports finds the TCP ports that programs listen on and makes those on
// the loopback address reachable on another address of the machine.
//
// A Forwarder asks the kernel for listening sockets (sock_diag(7)): often while
// something runs or has changed lately, rarely otherwise, never while it is
// quiesced. For a listener on 127.0.0.1 or ::1 it takes connections on the
// forward address at the same port and copies them both ways in the kernel
// (splice(2)). A listener that accepts on the forward address itself is left
// alone. The kernel reports destroyed sockets, so that a forward goes the
// moment the listener behind it does.
//
// Where the kernel can steer connections, one socket, the door, takes those to
// all ports, and no port is bound; elsewhere each port has a listening socket.
//
// One goroutine serves the timer, the kernel's reports and all listening
// sockets; a connection has two goroutines. All state is
// behind one lock, and nothing blocks under it. It knows no other protocol than
// TCP and does not look at what it copies. docs/PORTS.md holds the rules.
package ports
