package vm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// nfsServer serves one directory with one file to read, by NFS version 3 (RFC
// 1813) and its MOUNT protocol, both on one port. It is as much of a server as
// the kernel's client needs.
type nfsServer struct {
	listener net.Listener
	text     string

	mu     sync.Mutex
	silent bool                  // guarded by mu, as is all below: accepts and never answers
	mounts int                   // MNT calls
	conns  map[net.Conn]struct{} // open ones
	wg     sync.WaitGroup
}

const (
	nfsPort   = ":2049"
	nfsExport = "/export"
	nfsFile   = "greeting"
)

// serveNFS serves on the host's end of a link.
func serveNFS(l *link, ip, text string) (*nfsServer, error) {
	listener, err := l.listen(ip + nfsPort)
	if err != nil {
		return nil, fmt.Errorf("nfs server: %w", err)
	}
	s := &nfsServer{listener: listener, text: text, conns: map[net.Conn]struct{}{}}
	s.wg.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[c] = struct{}{}
			s.mu.Unlock()
			s.wg.Go(func() { s.serve(c) })
		}
	})
	return s, nil
}

// close ends the server and its connections.
func (s *nfsServer) close() {
	_ = s.listener.Close()
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// hush makes the server as one that hangs.
func (s *nfsServer) hush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = true
}

// mounted tells how often the directory was mounted.
func (s *nfsServer) mounted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mounts
}

// serve answers calls: each comes in a record with its length before, of which
// the highest bit says that it is the last fragment (RFC 5531, section 11).
func (s *nfsServer) serve(c net.Conn) {
	for {
		var size [4]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		record := make([]byte, binary.BigEndian.Uint32(size[:])&0x7fffffff)
		if _, err := io.ReadFull(c, record); err != nil {
			return
		}
		s.mu.Lock()
		silent := s.silent
		s.mu.Unlock()
		if silent {
			continue
		}
		reply, err := s.answer(record)
		if err != nil {
			_ = c.Close()
			return
		}
		binary.BigEndian.PutUint32(size[:], uint32(len(reply))|1<<31)
		if _, err := c.Write(append(size[:], reply...)); err != nil {
			return
		}
	}
}

var errXDR = errors.New("malformed call")

// xdr reads what RFC 4506 writes; errors show in ok.
type xdr struct {
	b   []byte
	bad bool
}

func (x *xdr) uint32() uint32 {
	if len(x.b) < 4 {
		x.bad = true
		return 0
	}
	v := binary.BigEndian.Uint32(x.b)
	x.b = x.b[4:]
	return v
}

func (x *xdr) opaque() string {
	n := int(x.uint32())
	padded := (n + 3) &^ 3
	if x.bad || padded > len(x.b) {
		x.bad = true
		return ""
	}
	v := string(x.b[:n])
	x.b = x.b[padded:]
	return v
}

// put appends words, and strings as opaque data.
func put(b []byte, values ...any) []byte {
	for _, v := range values {
		switch v := v.(type) {
		case int:
			b = binary.BigEndian.AppendUint32(b, uint32(v))
		case uint64:
			b = binary.BigEndian.AppendUint64(b, v)
		case string:
			b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
			b = append(b, v...)
			b = append(b, make([]byte, -len(v)&3)...)
		case []byte:
			b = append(b, v...)
		}
	}
	return b
}

// Programs, and procedures of the two.
const (
	progNFS   = 100003
	progMount = 100005

	mountMnt = 1

	nfsGetattr  = 1
	nfsLookup   = 3
	nfsAccess   = 4
	nfsRead     = 6
	nfsFsstat   = 18
	nfsFsinfo   = 19
	nfsPathconf = 20
)

// File handles, and errors.
const (
	handleDir  = "dir0"
	handleFile = "file"

	errNoEntry      = 2
	errNotSupported = 10004
)

// answer answers one call.
func (s *nfsServer) answer(record []byte) ([]byte, error) {
	call := xdr{b: record}
	id := call.uint32()
	call.uint32() // a call
	call.uint32() // of RPC version 2
	program, version, procedure := call.uint32(), call.uint32(), call.uint32()
	for range 2 { // credential and verifier
		call.uint32()
		call.opaque()
	}
	if call.bad {
		return nil, errXDR
	}
	reply := put(nil, int(id), 1, 0, 0, "") // accepted, no verifier
	switch {
	case version != 3 || program != progNFS && program != progMount:
		return put(reply, 1), nil // program unavailable
	case procedure == 0:
		return put(reply, 0), nil
	case program == progMount:
		return s.mount(put(reply, 0), procedure, &call)
	default:
		return s.nfs(put(reply, 0), procedure, &call)
	}
}

func (s *nfsServer) mount(reply []byte, procedure uint32, call *xdr) ([]byte, error) {
	if procedure != mountMnt {
		return reply, nil // unmounting needs no answer
	}
	if path := call.opaque(); path != nfsExport {
		return put(reply, errNoEntry), nil
	}
	s.mu.Lock()
	s.mounts++
	s.mu.Unlock()
	return put(reply, 0, handleDir, 1, 1), nil // AUTH_SYS will do
}

func (s *nfsServer) nfs(reply []byte, procedure uint32, call *xdr) ([]byte, error) {
	handle := call.opaque()
	attributes := s.attributes(handle)
	if call.bad || attributes == nil {
		return nil, errXDR
	}
	after := put(nil, 1, attributes) // post_op_attr
	switch procedure {
	case nfsGetattr:
		return put(reply, 0, attributes), nil
	case nfsLookup:
		if name := call.opaque(); name != nfsFile {
			return put(reply, errNoEntry, after), nil
		}
		return put(reply, 0, handleFile, 1, s.attributes(handleFile), after), nil
	case nfsAccess:
		return put(reply, 0, after, int(call.uint32())), nil
	case nfsRead:
		offset := min(int(uint64(call.uint32())<<32|uint64(call.uint32())), len(s.text))
		data := s.text[offset:min(offset+int(call.uint32()), len(s.text))]
		return put(reply, 0, after, len(data), 1, data), nil
	case nfsFsstat:
		return put(reply, 0, after, uint64(1<<20), uint64(0), uint64(0), uint64(2), uint64(0), uint64(0), 0), nil
	case nfsFsinfo:
		const most = 64 << 10
		return put(reply, 0, after, most, most, 4096, most, most, 4096, most, uint64(1<<40), 0, 1, 0), nil
	case nfsPathconf:
		return put(reply, 0, after, 1, 255, 1, 1, 0, 1), nil
	default:
		return put(reply, errNotSupported, after), nil
	}
}

// attributes are the fattr3 of a handle.
func (s *nfsServer) attributes(handle string) []byte {
	kind, mode, size, id := 2, 0o755, uint64(4096), uint64(1)
	switch handle {
	case handleDir:
	case handleFile:
		kind, mode, size, id = 1, 0o644, uint64(len(s.text)), 2
	default:
		return nil
	}
	b := put(nil, kind, mode, 1, 0, 0, size, size, 0, 0, uint64(1), id)
	for range 3 { // times
		b = put(b, 1, 0)
	}
	return b
}
