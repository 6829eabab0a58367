package api

import (
	"mime"
	"strconv"
	"strings"
)

// prefers answers which of the offered media types an Accept header likes best
// (RFC 9110, section 12.5.1); the first offered where it does not say, or
// accepts none.
func prefers(accept []string, offers ...string) string {
	best, most := offers[0], 0.0
	for _, offer := range offers {
		if q := quality(accept, offer); q > most {
			best, most = offer, q
		}
	}
	return best
}

// quality is the weight of a media type: that of the most specific range which
// it is in.
func quality(accept []string, media string) float64 {
	kind, _, _ := strings.Cut(media, "/")
	weight, exactness := 0.0, 0
	for _, field := range accept {
		for part := range strings.SplitSeq(field, ",") {
			name, params, err := mime.ParseMediaType(part)
			if err != nil {
				continue
			}
			exact := 0
			switch name {
			case media:
				exact = 3
			case kind + "/*":
				exact = 2
			case "*/*":
				exact = 1
			}
			if exact <= exactness {
				continue
			}
			exactness, weight = exact, 1
			if q, err := strconv.ParseFloat(params["q"], 64); err == nil {
				weight = q
			}
		}
	}
	return weight
}
