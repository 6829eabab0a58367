package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// ListenUnix listens on a unix socket that root alone can connect to. A socket
// that nobody listens on any more is replaced. New takes the listener over; its
// end removes the socket.
func ListenUnix(path string) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	// Until here the daemon's umask keeps others out: connecting takes the
	// permission to write (unix(7)).
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), listener.Close())
	}
	return listener, nil
}

// removeStale removes a socket that an earlier daemon left behind, and nothing
// else.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil // listening tells what is wrong with it
	}
	if err != nil {
		return err
	}
	var d net.Dialer
	conn, err := d.DialContext(context.Background(), "unix", path)
	if err == nil {
		_ = conn.Close()
		return nil // somebody's
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}
