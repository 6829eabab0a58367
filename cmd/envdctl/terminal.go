package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	pb "github.com/wrenn/envd/gen/process"
)

// terminal is our own, in raw mode: every key goes to the process.
type terminal struct {
	fd    int
	saved *unix.Termios // nil when standard input is no terminal
}

func openTerminal() (*terminal, error) {
	t := &terminal{fd: int(os.Stdin.Fd())}
	saved, err := unix.IoctlGetTermios(t.fd, unix.TCGETS)
	if err != nil {
		return t, nil //nolint:nilerr // not a terminal: nothing to set
	}
	raw := *saved
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(t.fd, unix.TCSETS, &raw); err != nil {
		return nil, fmt.Errorf("set terminal to raw mode: %w", err)
	}
	t.saved = saved
	return t, nil
}

// size is that of our terminal, or the classic one without.
func (t *terminal) size() *pb.PTY_Size {
	ws, err := unix.IoctlGetWinsize(t.fd, unix.TIOCGWINSZ)
	if err != nil {
		return &pb.PTY_Size{Cols: 80, Rows: 24}
	}
	return &pb.PTY_Size{Cols: uint32(ws.Col), Rows: uint32(ws.Row)}
}

func (t *terminal) restore() {
	if t.saved != nil {
		_ = unix.IoctlSetTermios(t.fd, unix.TCSETS, t.saved)
	}
}
