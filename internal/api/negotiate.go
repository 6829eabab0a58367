package api

import (
	"iter"
	"strings"
)

// full is the weight of what a client accepts without saying how much, in
// thousandths (RFC 9110, section 12.4.2).
const full = 1000

// weighted yields the elements of a list such as Accept, in lower case and
// without parameters, with their weights. An element whose weight is none is
// passed over.
func weighted(values []string) iter.Seq2[string, int] {
	return func(yield func(string, int) bool) {
		for _, value := range values {
			for element := range strings.SplitSeq(value, ",") {
				name, parameters, _ := strings.Cut(element, ";")
				name = strings.ToLower(strings.Trim(name, " \t"))
				q, ok := weightOf(parameters)
				if ok && name != "" && !yield(name, q) {
					return
				}
			}
		}
	}
}

// weightOf finds the weight among parameters.
func weightOf(parameters string) (q int, ok bool) {
	for parameter := range strings.SplitSeq(parameters, ";") {
		name, value, _ := strings.Cut(parameter, "=")
		if strings.EqualFold(strings.Trim(name, " \t"), "q") {
			return parseWeight(strings.Trim(value, " \t"))
		}
	}
	return full, true
}

// parseWeight reads 0, 1 and up to three digits between.
func parseWeight(s string) (q int, ok bool) {
	if s == "" || len(s) > len("0.000") || s[0] != '0' && s[0] != '1' || len(s) > 1 && s[1] != '.' {
		return 0, false
	}
	q = int(s[0]-'0') * full
	for i, unit := 2, full/10; i < len(s); i, unit = i+1, unit/10 {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		q += int(s[i]-'0') * unit
	}
	return q, q <= full
}

// coding is how contents are encoded on the way.
type coding string

// The content codings that we have (RFC 9110, section 8.4.1; RFC 8878).
const (
	identity coding = ""
	gzipped  coding = "gzip"
	zstded   coding = "zstd"
)

// acceptedCodings answers the coding that the values of Accept-Encoding prefer,
// and whether identity would do as well. Where nothing is acceptable it answers
// identity, false.
//
// Of equal weights, what is named comes first, zstd before gzip, then identity,
// and only then what "*" stands for: a client that says just "*" has asked for
// nothing.
func acceptedCodings(values []string) (best coding, plain bool) {
	weights := make(map[string]int, 4)
	for name, q := range weighted(values) {
		if name == "x-gzip" { // an alias (RFC 9110, section 8.4.1.3)
			name = string(gzipped)
		}
		weights[name] = q
	}
	rest, anything := weights["*"]
	own, named := weights["identity"]
	if !named {
		own = rest
	}
	plain = own > 0 || !named && !anything

	best, bestQ := identity, 0
	take := func(c coding, q int) {
		if q > bestQ {
			best, bestQ = c, q
		}
	}
	zstdQ, zstdNamed := weights[string(zstded)]
	gzipQ, gzipNamed := weights[string(gzipped)]
	take(zstded, zstdQ)
	take(gzipped, gzipQ)
	take(identity, own)
	if !gzipNamed {
		take(gzipped, rest)
	}
	if !zstdNamed {
		take(zstded, rest)
	}
	return best, plain
}

// archive is a form in which a directory travels: a tar archive, compressed or
// not.
type archive struct {
	mediaType string
	extension string
	coding    coding
}

var archives = [...]archive{
	{"application/x-tar", ".tar", identity},
	{"application/gzip", ".tar.gz", gzipped},
	{"application/zstd", ".tar.zst", zstded},
}

// archiveType finds the archive of a media type.
func archiveType(mediaType string) (archive, bool) {
	if mediaType == "application/x-gzip" { // as it was called before RFC 6713
		mediaType = "application/gzip"
	}
	for _, a := range archives {
		if a.mediaType == mediaType {
			return a, true
		}
	}
	return archive{}, false
}

// acceptedArchive answers the archive that the values of Accept ask for by
// name: the first of those with the highest weight.
func acceptedArchive(values []string) (best archive, ok bool) {
	bestQ := 0
	for name, q := range weighted(values) {
		if a, known := archiveType(name); known && q > bestQ {
			best, bestQ, ok = a, q, true
		}
	}
	return best, ok
}
