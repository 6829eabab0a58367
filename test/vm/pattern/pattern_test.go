package pattern

import "testing"

func TestPattern(t *testing.T) {
	whole := make([]byte, 100)
	Fill(whole, 7, 0)
	for from := range whole {
		if at := Check(whole[from:], 7, uint64(from)); at >= 0 {
			t.Fatalf("from %d: differs at %d", from, at)
		}
		if at := Check(whole[from:], 8, uint64(from)); at < 0 {
			t.Fatalf("from %d: another seed is the same", from)
		}
	}
	whole[50] ^= 1
	if at := Check(whole, 7, 0); at != 50 {
		t.Errorf("changed at 50, found at %d", at)
	}
}
