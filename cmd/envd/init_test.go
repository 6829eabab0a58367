package main

import (
	"flag"
	"io"
	"slices"
	"testing"
)

// TestInitTakesAnyArgument checks that PID 1 gets through whatever the kernel's
// command line holds, and that the flags in it count.
func TestInitTakesAnyArgument(t *testing.T) {
	for _, nonsense := range [][]string{
		{"word"},
		{"--unknown", "-x=1"},
		{"--port=abc"},
		{"---"},
		{"--="},
		{"-=x"},
		{"---port", "-"},
		{"--", "word"},
		{"-h"},
	} {
		fs, port, unix := flags()
		args := slices.Concat([]string{"--port=1"}, nonsense, []string{"--unix=/u"}, nonsense[:1])
		if err := parse(fs, args, true); err != nil || *port != 1 && nonsense[0] != "--port=abc" || *unix != "/u" {
			t.Errorf("%q: %v, port %d, unix %q", args, err, *port, *unix)
		}
	}
}

// TestArguments checks what a daemon that is not init refuses.
func TestArguments(t *testing.T) {
	for _, args := range [][]string{{"word"}, {"--unknown"}, {"--port=abc"}, {"--="}, {"-h"}, {"--port=1", "x", "--unix=/u"}} {
		fs, _, _ := flags()
		if parse(fs, args, false) == nil {
			t.Errorf("%q are taken", args)
		}
	}
	for _, arg := range []string{"--output-retain=29s", "--output-window=-1", "--output-total=-1"} {
		if code := run([]string{arg}); code != 2 {
			t.Errorf("%s is taken: exit code %d", arg, code)
		}
	}
	fs, port, unix := flags()
	if err := parse(fs, []string{"-port=2", "--unix", "/u"}, false); err != nil || *port != 2 || *unix != "/u" {
		t.Errorf("%v, port %d, unix %q", err, *port, *unix)
	}
}

func flags() (fs *flag.FlagSet, port *int, unix *string) {
	fs = flag.NewFlagSet("envd", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	return fs, fs.Int("port", 0, ""), fs.String("unix", "", "")
}
