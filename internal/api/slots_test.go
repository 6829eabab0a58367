package api

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/leaktest"
)

// TestStalledTransfers: clients that begin what holds a thread and then send
// nothing get no more threads than there are slots. Whoever needs none is served.
func TestStalledTransfers(t *testing.T) {
	archive := tarred(t, tarFile("a", "contents"))
	for _, row := range []struct {
		name, contentType, body string
		confined                bool
	}{
		{"upload as the user", rawType, "contents", true},
		{"archive as the user", "application/x-tar", archive, true},
		{"archive for the user", "application/x-tar", archive, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			home := homeDir(t)
			leaktest.Check(t)
			threads := newSlots(1, 20*time.Millisecond)
			s := newSiteOf(t, home, row.confined, threads)
			post := func(body io.Reader, query ...string) reply {
				return s.do("POST", s.files(query...), body, "Content-Type", row.contentType)
			}
			body, client := io.Pipe()
			ended := make(chan reply, 1)
			go func() {
				r, err := s.try("POST", s.files("path", "one"), body, "Content-Type", row.contentType)
				if err != nil {
					t.Error(err)
				}
				ended <- r
			}()
			_, err := io.WriteString(client, row.body[:4])
			must(t, err)
			for end := time.Now().Add(10 * time.Second); len(threads.taken) == 0; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the upload does not begin")
				}
			}
			post(strings.NewReader(row.body), "path", "two").want(t, 503)
			if row.confined {
				s.get("two").want(t, 503)
				r := s.do("POST", s.base+"/filesystem.Filesystem/ListDir", strings.NewReader(`{"path":"~"}`), "Content-Type", "application/json")
				if r.StatusCode != 503 || !strings.Contains(r.body, `"unavailable"`) {
					t.Errorf("list: %s: %s", r.Status, r.body)
				}
			} else {
				s.put("plain", "x").want(t, 200)
			}
			post(strings.NewReader(row.body), "path", home+"/roots", "username", "root").want(t, 200)

			_, err = io.WriteString(client, row.body[4:])
			must(t, err)
			must(t, client.Close())
			if r := <-ended; r.StatusCode != 200 {
				t.Errorf("%s: %s", r.Status, r.body)
			}
			post(strings.NewReader(row.body), "path", "two").want(t, 200)
		})
	}
}
