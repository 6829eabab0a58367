package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Steering hands connections to chosen ports of one address to one listening
// socket, which is bound to another port: nothing is bound to the chosen ones,
// so nobody else is kept from binding them. The kernel runs a program of ours
// where it looks for a listener (BPF_PROG_TYPE_SK_LOOKUP, Linux 5.9), in the
// network namespace of the caller. It takes CAP_NET_ADMIN and CAP_BPF.
type Steering struct{ ports, sockets, program, link int }

// OpenSteering steers connections to addr to the socket listener, no port yet.
// The caller closes it; the kernel forgets it with the process.
func OpenSteering(addr netip.Addr, listener int) (_ *Steering, err error) {
	s := &Steering{-1, -1, -1, -1}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.ports, err = createMap(unix.BPF_MAP_TYPE_HASH, 4, 1<<16, unix.BPF_F_NO_PREALLOC); err != nil {
		return nil, err
	}
	if s.sockets, err = createMap(unix.BPF_MAP_TYPE_SOCKMAP, 4, 1, 0); err != nil {
		return nil, err
	}
	if err = updateMap(s.sockets, 0, uint32(listener)); err != nil {
		return nil, err
	}
	if s.program, err = loadSteering(steeringProgram(addr, s.ports, s.sockets)); err != nil {
		return nil, err
	}
	ns, err := RetryInt(func() (int, error) {
		return unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer unix.Close(ns)
	attr := struct{ program, target, kind, flags uint32 }{uint32(s.program), uint32(ns), unix.BPF_SK_LOOKUP, 0}
	s.link, err = bpf(unix.BPF_LINK_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return nil, fmt.Errorf("attach steering: %w", err)
	}
	return s, nil
}

// Add steers connections to port, Remove does not any more.
func (s *Steering) Add(port uint16) error { return updateMap(s.ports, uint32(port), 1) }

// Remove ends what Add began.
func (s *Steering) Remove(port uint16) error {
	key := uint32(port)
	var pins runtime.Pinner
	defer pins.Unpin()
	attr := mapElement{fd: uint32(s.ports), key: address(&pins, &key)}
	_, err := bpf(unix.BPF_MAP_DELETE_ELEM, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("stop steering port %d: %w", port, err)
	}
	return nil
}

// Close ends all steering.
func (s *Steering) Close() {
	for _, fd := range []int{s.link, s.program, s.sockets, s.ports} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// mapElement is the part of union bpf_attr for elements of maps.
type mapElement struct {
	fd    uint32
	_     uint32
	key   uint64 // pointers
	value uint64
	flags uint64
}

func createMap(kind, valueSize, entries, flags uint32) (int, error) {
	attr := struct{ kind, keySize, valueSize, entries, flags uint32 }{kind, 4, valueSize, entries, flags}
	fd, err := bpf(unix.BPF_MAP_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return -1, fmt.Errorf("create map for steering: %w", err)
	}
	return fd, nil
}

func updateMap(fd int, key, value uint32) error {
	var pins runtime.Pinner
	defer pins.Unpin()
	attr := mapElement{fd: uint32(fd), key: address(&pins, &key), value: address(&pins, &value)}
	_, err := bpf(unix.BPF_MAP_UPDATE_ELEM, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return fmt.Errorf("steer: %w", err)
	}
	return nil
}

func loadSteering(program []byte) (int, error) {
	license := []byte("Apache-2.0\x00")
	var pins runtime.Pinner
	defer pins.Unpin()
	attr := struct {
		kind, instructions uint32
		program, license   uint64 // pointers
		logLevel, logSize  uint32
		log                uint64
		version, flags     uint32
		name               [16]byte
		device, attach     uint32
	}{
		kind: unix.BPF_PROG_TYPE_SK_LOOKUP, instructions: uint32(len(program) / 8),
		program: address(&pins, &program[0]), license: address(&pins, &license[0]),
		attach: unix.BPF_SK_LOOKUP,
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return -1, fmt.Errorf("load steering: %w", err)
	}
	return fd, nil
}

// address is that of what p points to, until pins let go. A variable on the
// stack would move with it, and the number in the kernel's argument would not.
func address[T any](pins *runtime.Pinner, p *T) uint64 {
	pins.Pin(p)
	return uint64(uintptr(unsafe.Pointer(p)))
}

// bpf is bpf(2). Every descriptor it answers is close-on-exec.
func bpf(command uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attr), size)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR, unix.EAGAIN: // the verifier was interrupted
		default:
			return -1, errno
		}
	}
}

// Offsets in struct bpf_sk_lookup, and numbers of helpers (linux/bpf.h).
const (
	lookupFamily   = 8
	lookupProtocol = 12
	lookupLocal4   = 40
	lookupLocal6   = 44
	lookupPort     = 60

	helperLookup  = 1   // bpf_map_lookup_elem
	helperRelease = 86  // bpf_sk_release
	helperAssign  = 124 // bpf_sk_assign
)

// assembler makes a program; jumps lead to its end, where the kernel is told to
// go on with what it has.
type assembler struct {
	code  []byte
	jumps []int // offsets of jumps to the end
}

func (a *assembler) add(op, dst, src uint8, off int16, imm uint32) {
	a.code = append(a.code, op, src<<4|dst)
	a.code = binary.NativeEndian.AppendUint16(a.code, uint16(off))
	a.code = binary.NativeEndian.AppendUint32(a.code, imm)
}

// endIf jumps to the end if op, a comparison of register dst with imm, is true.
func (a *assembler) endIf(op, dst uint8, imm uint32) {
	a.jumps = append(a.jumps, len(a.code))
	a.add(op, dst, 0, 0, imm)
}

// load reads a word of the lookup, in register 6, into register 2.
func (a *assembler) load(off int16) { a.add(unix.BPF_LDX|unix.BPF_MEM|unix.BPF_W, 2, 6, off, 0) }

func (a *assembler) move(dst, src uint8) {
	a.add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_X, dst, src, 0, 0)
}

func (a *assembler) call(helper uint32) { a.add(unix.BPF_JMP|unix.BPF_CALL, 0, 0, 0, helper) }

// lookup looks the key at the top of the stack up; register 0 gets the result.
func (a *assembler) lookup(table int) {
	a.add(unix.BPF_LD|unix.BPF_IMM|unix.BPF_DW, 1, unix.BPF_PSEUDO_MAP_FD, 0, uint32(table))
	a.add(0, 0, 0, 0, 0) // the upper half
	a.move(2, 10)
	a.add(unix.BPF_ALU64|unix.BPF_ADD|unix.BPF_K, 2, 0, 0, 0xfffffffc) // -4
	a.call(helperLookup)
	a.endIf(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 0)
}

// steeringProgram assigns the only socket to what is for addr and a port in
// ports.
func steeringProgram(addr netip.Addr, ports, sockets int) []byte {
	const differs = unix.BPF_JMP32 | unix.BPF_JNE | unix.BPF_K
	var a assembler
	a.move(6, 1) // the lookup
	a.load(lookupProtocol)
	a.endIf(differs, 2, unix.IPPROTO_TCP)
	a.load(lookupFamily)
	words, at := addr.AsSlice(), int16(lookupLocal6)
	if addr.Is4() {
		a.endIf(differs, 2, unix.AF_INET)
		at = lookupLocal4
	} else {
		a.endIf(differs, 2, unix.AF_INET6)
	}
	for ; len(words) > 0; words, at = words[4:], at+4 {
		a.load(at)
		a.endIf(differs, 2, binary.NativeEndian.Uint32(words))
	}
	a.load(lookupPort)
	a.add(unix.BPF_STX|unix.BPF_MEM|unix.BPF_W, 10, 2, -4, 0)
	a.lookup(ports)
	a.add(unix.BPF_ST|unix.BPF_MEM|unix.BPF_W, 10, 0, -4, 0)
	a.lookup(sockets)
	a.move(7, 0) // the socket, with a reference
	a.move(1, 6)
	a.move(2, 7)
	a.add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_K, 3, 0, 0, 0)
	a.call(helperAssign)
	a.move(1, 7)
	a.call(helperRelease)
	for _, at := range a.jumps {
		binary.NativeEndian.PutUint16(a.code[at+2:], uint16((len(a.code)-at)/8-1))
	}
	a.add(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_K, 0, 0, 0, 1) // SK_PASS
	a.add(unix.BPF_JMP|unix.BPF_EXIT, 0, 0, 0, 0)
	return a.code
}
