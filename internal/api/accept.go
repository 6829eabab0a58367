package api

import "strings"

// prefers answers which of the offered media types an Accept header likes best
// (RFC 9110, section 12.5.1); the first offered where it does not say, or
// accepts none.
func prefers(accept []string, offers ...string) string {
	best, most := offers[0], 0
	for _, offer := range offers {
		if q := quality(accept, offer); q > most {
			best, most = offer, q
		}
	}
	return best
}

// quality is the weight of a media type: that of the most specific range which
// it is in, the first of several.
func quality(accept []string, media string) int {
	kind, _, _ := strings.Cut(media, "/")
	weight, exactness := 0, 0
	for name, q := range weighted(accept) {
		exact := 0
		switch name {
		case media:
			exact = 3
		case kind + "/*":
			exact = 2
		case "*/*":
			exact = 1
		}
		if exact > exactness {
			exactness, weight = exact, q
		}
	}
	return weight
}
