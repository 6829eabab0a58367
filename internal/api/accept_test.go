package api

import "testing"

func TestPrefers(t *testing.T) {
	const json, stream = "application/json", "text/event-stream"
	for _, tc := range []struct {
		accept []string
		want   string
	}{
		{nil, json},
		{[]string{""}, json},
		{[]string{"*/*"}, json},
		{[]string{"text/event-stream"}, stream},
		{[]string{"TEXT/Event-Stream; charset=utf-8"}, stream},
		{[]string{"text/*"}, stream},
		{[]string{"application/json, text/event-stream"}, json},
		{[]string{"application/json;q=0.5, text/event-stream"}, stream},
		{[]string{"application/json;q=0.5", "text/event-stream;q=0.4"}, json},
		{[]string{"*/*;q=0.1, text/event-stream;q=0"}, json},
		{[]string{"application/json;q=0, */*"}, stream},
		{[]string{"text/html"}, json},
		{[]string{"/;;,=,text/event-stream"}, stream},
		{[]string{"text/event-stream;q=x"}, json}, // no weight at all
	} {
		if got := prefers(tc.accept, json, stream); got != tc.want {
			t.Errorf("%q: %s, want %s", tc.accept, got, tc.want)
		}
	}
}

func FuzzPrefers(f *testing.F) {
	f.Add("application/json;q=0.5, text/event-stream")
	f.Add("*/*;q=NaN,,/")
	f.Fuzz(func(t *testing.T, accept string) {
		if got := prefers([]string{accept}, "a/b", "c/d"); got != "a/b" && got != "c/d" {
			t.Errorf("%q: %q", accept, got)
		}
	})
}
