package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"

	"connectrpc.com/connect"

	"github.com/wrenn/envd/client"
)

const usage = `usage: envdctl [flags] command

commands:
  health                     what the daemon says of itself
  exec [-t] [-i] CMD [ARG…]  run a program, follow its output, exit as it does
  ps [-a]                    list processes; -a: also those that ended lately
  attach PID|TAG             follow a process from the oldest output kept
  kill [-s N] PID|TAG        send a signal; 9, the default, takes the whole tree
  ls [-depth N] [PATH]       list a directory, by default the working directory
  stat [PATH]                what is at a path, with its metadata
  mkdir PATH                 make a directory and its parents
  mv SOURCE DESTINATION      rename, also between file systems
  rm PATH                    remove, with everything below
  cat PATH…                  print files
  cp [-atomic] FILE :PATH    copy a file into the guest, or :PATH FILE out of it
  pack [-z|-zstd] PATH       write a directory as a tar archive to standard output
  unpack [-z|-zstd] PATH     make what a tar archive on standard input holds
  watch [-r] [-network] [PATH]
                             print what changes in a directory; -r: and below
  snapshot [-prepare] [-freeze]
                             the guest's state and generation; -prepare: bring it
                             to rest for a freeze; -freeze: its commands as well
  init [FLAG…]               what a host says after a boot: token, user, environment, …
  envs                       the default environment of processes

flags, before the command (envdctl COMMAND -h tells those of one):
`

// errUsage says that the command line makes no sense.
var errUsage = errors.New("see envdctl -h")

func printUsage(w io.Writer, fs *flag.FlagSet) error {
	fs.SetOutput(w)
	_, err := io.WriteString(w, usage)
	fs.PrintDefaults()
	return err
}

// parse leaves it to the caller to tell of an error, in one line: the flag
// package would print every flag below it.
func parse(fs *flag.FlagSet, args []string) error {
	fs.SetOutput(io.Discard)
	return fs.Parse(args)
}

// arguments takes a command's flags and answers what follows them, which are
// least to most words; what names those. Its error is flag.ErrHelp when help
// was asked for and printed.
func arguments(fs *flag.FlagSet, args []string, least, most int, what string) ([]string, error) {
	switch err := parse(fs, args); {
	case errors.Is(err, flag.ErrHelp):
		fs.SetOutput(os.Stdout)
		describe(fs)
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%s: %w: see envdctl %s -h", fs.Name(), err, fs.Name())
	case fs.NArg() < least || fs.NArg() > most:
		return nil, fmt.Errorf("%s takes %s: see envdctl %s -h", fs.Name(), what, fs.Name())
	}
	return fs.Args(), nil
}

// plain is arguments for a command without flags.
func plain(name string, args []string, least, most int, what string) ([]string, error) {
	return arguments(flag.NewFlagSet(name, flag.ContinueOnError), args, least, most, what)
}

// describe prints what usage says of one command, and its flags.
func describe(fs *flag.FlagSet) {
	inside := false
	for line := range strings.Lines(usage) {
		if !strings.HasPrefix(line, "   ") { // not the rest of the line before
			inside = strings.HasPrefix(line, "  "+fs.Name()+" ")
		}
		if inside {
			_, _ = io.WriteString(fs.Output(), line)
		}
	}
	fs.PrintDefaults()
}

// checkURL finds what every call would fail on, and then less plainly.
func checkURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%q is no address of a daemon, such as http://127.0.0.1:49983", s)
	}
	return nil
}

// explained adds to err what to do about it, where that is in our flags.
func (a *app) explained(err error) error {
	refused := (*client.StatusError)(nil)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w (no daemon listens at %s; -url or ENVD_URL name another address)", err, a.url)
	// An unknown user is the other thing that a daemon answers so.
	case a.user == "" && (connect.CodeOf(err) == connect.CodeUnauthenticated ||
		errors.As(err, &refused) && refused.Status == http.StatusUnauthorized):
		return fmt.Errorf("%w (-token or ENVD_TOKEN give one)", err)
	}
	return err
}
