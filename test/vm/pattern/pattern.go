// Package pattern makes bytes that say by themselves where they belong: a
// reader can check any piece of a stream that it knows the seed and offset of.
package pattern

import "encoding/binary"

// word is the n-th eight bytes of a stream (splitmix64).
func word(seed, n uint64) uint64 {
	x := seed + (n+1)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Fill makes b the bytes from offset on.
func Fill(b []byte, seed, offset uint64) {
	var w [8]byte
	for i := 0; i < len(b); {
		at := offset + uint64(i)
		binary.LittleEndian.PutUint64(w[:], word(seed, at/8))
		i += copy(b[i:], w[at%8:])
	}
}

// Check tells where b is first not the bytes from offset on; -1 is nowhere.
func Check(b []byte, seed, offset uint64) int {
	want := make([]byte, len(b))
	Fill(want, seed, offset)
	for i := range b {
		if b[i] != want[i] {
			return i
		}
	}
	return -1
}
