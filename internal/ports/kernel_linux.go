package ports

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

const (
	// receiveSize holds what the kernel puts into one datagram of an answer:
	// up to 32 KiB (linux/netlink.h). Only what is written to takes memory.
	receiveSize = 32 << 10
	// dumpTries bounds how often an interrupted answer is asked for again.
	dumpTries = 4
)

// kernel is the three netlink sockets that tell of listening sockets and
// addresses. It belongs to a Forwarder and is used under its lock.
type kernel struct {
	ask       *linux.Netlink // requests and their answers
	destroyed *linux.Netlink // reports of destroyed sockets, while joined
	addresses *linux.Netlink // reports of addresses that come and go
	joined    bool
	buf       []byte
}

func openKernel() (_ *kernel, err error) {
	k := &kernel{buf: make([]byte, receiveSize)}
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	if k.ask, err = linux.OpenNetlink(unix.NETLINK_SOCK_DIAG, 0); err != nil {
		return nil, err
	}
	if k.destroyed, err = linux.OpenNetlink(unix.NETLINK_SOCK_DIAG, 0); err != nil {
		return nil, err
	}
	if err = k.destroyed.Filter(unconnected); err != nil {
		return nil, err
	}
	const groups = unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR
	if k.addresses, err = linux.OpenNetlink(unix.NETLINK_ROUTE, groups); err != nil {
		return nil, err
	}
	return k, nil
}

func (k *kernel) close() {
	for _, n := range []*linux.Netlink{k.ask, k.destroyed, k.addresses} {
		if n != nil {
			_ = n.Close()
		}
	}
}

// listeners asks for all listening sockets, into list. Whole tells whether the
// answer is the table of one moment: a long one comes in parts, between which
// the kernel may lose its place.
func (k *kernel) listeners(list []Listener) (_ []Listener, whole bool, err error) {
	for range dumpTries {
		var parts int
		list, parts, err = k.dump(list[:0])
		switch {
		case err == nil:
			return list, parts == 1, nil
		case !errors.Is(err, errInterrupted) && !errors.Is(err, linux.ErrLost):
			return nil, false, fmt.Errorf("list listening sockets: %w", err)
		}
	}
	return nil, false, fmt.Errorf("list listening sockets: %w", err)
}

func (k *kernel) dump(list []Listener) (_ []Listener, parts int, err error) {
	k.flush(k.ask) // of an answer that was given up
	if err := k.ask.Send(listenRequest[:]); err != nil {
		return list, 0, err
	}
	for {
		// The kernel writes as it is read: there is always something.
		b, err := k.ask.Receive(k.buf)
		if err != nil {
			return list, parts, err
		}
		before := len(list)
		var last bool
		if list, last, err = parseDump(list, b); last || err != nil {
			if len(list) > before {
				parts++
			}
			return list, max(parts, 1), err
		}
		parts++
	}
}

// flush throws away what is queued.
func (k *kernel) flush(n *linux.Netlink) {
	for {
		if _, err := n.Receive(k.buf); err != nil && !errors.Is(err, linux.ErrLost) {
			return
		}
	}
}

// reports reads the reports of destroyed sockets, and tells whether one is of a
// port in held. Lost reports may be.
func (k *kernel) reports(held func(port uint16) bool) (hit bool) {
	for {
		b, err := k.destroyed.Receive(k.buf)
		switch {
		case errors.Is(err, linux.ErrLost):
			hit = true
		case err != nil:
			return hit
		default:
			hit = hit || held(parseDestroyed(b))
		}
	}
}

// watch subscribes to reports of destroyed sockets, or ends that. While
// somebody is subscribed, the kernel writes one for every socket.
func (k *kernel) watch(on bool) error {
	if on == k.joined {
		return nil
	}
	change := k.destroyed.Leave
	if on {
		change = k.destroyed.Join
	}
	if err := errors.Join(change(destroyIPv4), change(destroyIPv6)); err != nil {
		return err
	}
	k.joined = on
	return nil
}
