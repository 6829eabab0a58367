package process

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// noFiles is what a side of stdio is without any.
var noFiles = [3]linux.Descriptor{-1, -1, -1}

// stdio is both sides of a process's descriptors 0, 1 and 2 before the start.
// After the start the child's side is closed, and the Process owns ours.
type stdio struct {
	child  [3]linux.Descriptor // -1 for none; with a terminal all are the same
	ours   [3]linux.Descriptor // -1 for none
	master *os.File            // instead of ours, with a terminal
}

// openStdio opens what spec asks for. The caller calls closeChild, and hands
// our side over with Process.connect, which closes what it does not take.
func openStdio(spec *Spec) (s *stdio, err error) {
	s = &stdio{child: noFiles, ours: noFiles}
	defer func() {
		if err != nil {
			s.closeChild()
			s.closeOurs()
			err = &StartError{Kind: Exhausted, Text: "open descriptors", Err: err}
		}
	}()
	if spec.Terminal != nil {
		return s, s.openTerminal(spec)
	}
	if spec.Stdin {
		s.ours[0], s.child[0], err = linux.PipeForWriting()
	} else {
		// One for each: descriptions have flags and locks that users share.
		s.child[0], err = linux.OpenNull()
	}
	if err != nil {
		return s, err
	}
	if s.ours[1], s.child[1], err = linux.PipeForReading(); err != nil {
		return s, err
	}
	s.ours[2], s.child[2], err = linux.PipeForReading()
	return s, err
}

func (s *stdio) openTerminal(spec *Spec) error {
	master, tty, err := linux.OpenTTY()
	if err != nil {
		return err
	}
	s.master, s.child = master, [3]linux.Descriptor{tty, tty, tty}
	if err := resize(master, *spec.Terminal); err != nil {
		return err
	}
	// As login does, so that the user can open its terminal by name.
	if err := unix.Fchown(int(tty), int(spec.User.UID), -1); err != nil && os.Geteuid() == 0 {
		return fmt.Errorf("give terminal to user: %w", err)
	}
	return nil
}

func resize(master *os.File, size Size) error {
	conn, err := master.SyscallConn()
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	if conn.Control(func(fd uintptr) { err = linux.SetTTYSize(fd, size.Cols, size.Rows) }) != nil {
		err = os.ErrClosed // Control fails for nothing else, and does not say it so
	}
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}

// takeTTY takes the child's side of the terminal over. As long as we have it
// open, a program that closes its terminal does not end it: the kernel would
// report EIO to the master and, once that is closed, hang the program up.
func (s *stdio) takeTTY() linux.Descriptor {
	tty := s.child[0]
	s.child = noFiles
	return tty
}

// closeChild closes the child's side. Again it does nothing.
func (s *stdio) closeChild() {
	for i, d := range s.child {
		if d >= 0 && (i == 0 || d != s.child[0]) {
			_ = d.Close()
		}
	}
	s.child = noFiles
}

func (s *stdio) closeOurs() {
	for _, d := range s.ours {
		if d >= 0 {
			_ = d.Close()
		}
	}
	if s.master != nil {
		_ = s.master.Close()
	}
}
