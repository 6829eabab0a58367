package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
)

var errNotModule = errors.New("not a kernel module")

// Offsets in the headers of a 64-bit ELF file, from elf.h.
const (
	elfHeaderSize    = 64
	elfSectionTable  = 40 // e_shoff
	elfSectionSize   = 58 // e_shentsize
	elfSectionCount  = 60 // e_shnum
	elfSectionNames  = 62 // e_shstrndx
	sectionHeader    = 64
	sectionFileStart = 24 // sh_offset
	sectionFileSize  = 32 // sh_size
)

// moduleNeeds tells which modules one needs before it, from the "depends" entry
// of its .modinfo section. Debian's packages come without a modules.dep, which
// the machine's own depmod is to write. debug/elf would do, at the price of
// the DWARF and decompression packages that it brings along.
func moduleNeeds(module []byte) ([]string, error) {
	info, err := modinfo(module)
	if err != nil {
		return nil, err
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if names, ok := bytes.CutPrefix(entry, []byte("depends=")); ok && len(names) > 0 {
			return strings.Split(string(names), ","), nil
		}
	}
	return nil, nil
}

// modinfo finds the .modinfo section of a little-endian 64-bit ELF file: all
// that the daemon is built for.
func modinfo(b []byte) ([]byte, error) {
	if len(b) < elfHeaderSize || !bytes.HasPrefix(b, []byte("\x7fELF\x02\x01")) {
		return nil, errNotModule
	}
	table := binary.LittleEndian.Uint64(b[elfSectionTable:])
	size := uint64(binary.LittleEndian.Uint16(b[elfSectionSize:]))
	count := uint64(binary.LittleEndian.Uint16(b[elfSectionCount:]))
	names := uint64(binary.LittleEndian.Uint16(b[elfSectionNames:]))
	if size < sectionHeader || names >= count {
		return nil, errNotModule
	}
	headers, ok := slice(b, table, size*count)
	if !ok {
		return nil, errNotModule
	}
	section := func(i uint64) ([]byte, bool) {
		h := headers[i*size:]
		return slice(b, binary.LittleEndian.Uint64(h[sectionFileStart:]), binary.LittleEndian.Uint64(h[sectionFileSize:]))
	}
	text, ok := section(names)
	if !ok {
		return nil, errNotModule
	}
	for i := range count {
		at := uint64(binary.LittleEndian.Uint32(headers[i*size:])) // sh_name
		if at < uint64(len(text)) && bytes.HasPrefix(text[at:], []byte(".modinfo\x00")) {
			if info, ok := section(i); ok {
				return info, nil
			}
		}
	}
	return nil, errNotModule
}

// slice is b[start:start+size], where b has that much.
func slice(b []byte, start, size uint64) ([]byte, bool) {
	if start > uint64(len(b)) || size > uint64(len(b))-start {
		return nil, false
	}
	return b[start : start+size], true
}
