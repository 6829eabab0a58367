package api

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestAcceptedCodings(t *testing.T) {
	for _, row := range []struct {
		accept string // values divided by "|"
		best   coding
		plain  bool
	}{
		{"", identity, true},
		{"gzip", gzipped, true},
		{"GZIP", gzipped, true},
		{"x-gzip", gzipped, true},
		{"zstd", zstded, true},
		{"deflate, br", identity, true},
		{"gzip, deflate, br, zstd", zstded, true},
		{"zstd, gzip", zstded, true},
		{"gzip|zstd;q=0.5", gzipped, true},
		{"gzip;q=0.5, zstd;q=0.5", zstded, true},
		{"gzip;q=0.1", gzipped, true},
		{"gzip;q=0", identity, true},
		{"gzip; q=0.000", identity, true},
		{"gzip ; Q=1.000", gzipped, true},
		{"identity", identity, true},
		{"identity, gzip", gzipped, true},
		{"identity;q=0.5, gzip;q=0.4", identity, true},
		{"identity;q=0.5, gzip;q=0.5", gzipped, true},
		{"identity;q=0", identity, false},
		{"identity;q=0, gzip", gzipped, false},
		{"identity;q=0, br", identity, false},
		{"*", identity, true},
		{"*;q=0.1", identity, true},
		{"*;q=0", identity, false},
		{"gzip, *;q=0", gzipped, false},
		{"identity, *;q=0", identity, true},
		{"identity;q=0, *", gzipped, false},
		{"identity;q=0.1, *", gzipped, true},
		{"identity;q=0, gzip;q=0, *", zstded, false},
		{"gzip;q=0, *", identity, true},
		{"gzip, *", gzipped, true},
		{"gzip;q=0.5, *", identity, true},
		{"gzip;q=0.5, *;q=0.4", gzipped, true},
		// What makes no sense says nothing.
		{"gzip;q=2", identity, true},
		{"gzip;q=1.001", identity, true},
		{"gzip;q=0.1234", identity, true},
		{"gzip;q=-1", identity, true},
		{"gzip;q=, ;;,, ,", identity, true},
		{"gzip;level=9", gzipped, true},
		{"gzip;level=9;q=0.2, zstd;q=0.1", gzipped, true},
	} {
		best, plain := acceptedCodings(strings.Split(row.accept, "|"))
		if best != row.best || plain != row.plain {
			t.Errorf("%q: %q, %v, want %q, %v", row.accept, best, plain, row.best, row.plain)
		}
	}
	if best, plain := acceptedCodings(nil); best != identity || !plain {
		t.Errorf("without the header: %q, %v", best, plain)
	}
}

func FuzzAcceptEncoding(f *testing.F) {
	for _, s := range []string{"", "gzip", "gzip, deflate, br, zstd", "*;q=0", "identity;q=0,*;q=1", "gzip;q=0.5;q=0", "x-gzip;Q=1.000 , zstd ;q=0.123"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, accept string) {
		best, plain := acceptedCodings([]string{accept})
		weights := maps.Collect(weighted([]string{accept}))
		if alias, ok := weights["x-gzip"]; ok {
			weights["gzip"] = max(weights["gzip"], alias)
		}
		weight := func(name string) int {
			if q, ok := weights[name]; ok {
				return q
			}
			return weights["*"]
		}
		for name, q := range weights {
			if q < 0 || q > full || name == "" || strings.ContainsAny(name, ",;ABC") {
				t.Errorf("%q: %q weighs %d", accept, name, q)
			}
		}
		if best != identity && weight(string(best)) == 0 {
			t.Errorf("%q: got %q, which weighs nothing", accept, best)
		}
		if best == identity && !plain && (weight("gzip") > 0 || weight("zstd") > 0) {
			t.Errorf("%q: nothing is acceptable, but there is", accept)
		}
		_, named := weights["identity"]
		_, anything := weights["*"]
		if refused := weight("identity") == 0 && (named || anything); plain == refused {
			t.Errorf("%q: identity acceptable: %v", accept, plain)
		}
		if plain && weight(string(best)) < weight("identity") && best != identity {
			t.Errorf("%q: got %q, less liked than identity", accept, best)
		}
	})
}

func TestAcceptedArchive(t *testing.T) {
	for _, row := range []struct{ accept, want string }{
		{"", ""},
		{"*/*", ""},
		{"application/*", ""},
		{"text/html", ""},
		{"application/x-tar", "application/x-tar"},
		{"Application/X-Tar; format=pax", "application/x-tar"},
		{"application/gzip", "application/gzip"},
		{"application/x-gzip", "application/gzip"},
		{"application/zstd, application/gzip", "application/zstd"},
		{"application/zstd;q=0.5, application/gzip", "application/gzip"},
		{"application/zstd;q=0", ""},
		{"text/html, application/x-tar;q=0.1, */*", "application/x-tar"},
	} {
		a, ok := acceptedArchive([]string{row.accept})
		if a.mediaType != row.want || ok != (row.want != "") {
			t.Errorf("%q: %q, %v", row.accept, a.mediaType, ok)
		}
	}
}

func TestWeighted(t *testing.T) {
	var got []string
	for name := range weighted([]string{" A , b;q=0.5;x=1", "c;q=nonsense", "d"}) {
		got = append(got, name)
	}
	if !slices.Equal(got, []string{"a", "b", "d"}) {
		t.Errorf("got %q", got)
	}
	for range weighted([]string{"a, b"}) {
		break
	}
}
