package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/wrenn/envd/internal/linux"
)

// parse reads the flags. An init has to come up whatever it is told: the kernel
// hands it also those words of its command line that it does not know itself.
// What makes no sense to PID 1 is one line, and the rest counts.
func parse(fs *flag.FlagSet, args []string, isInit bool) error {
	fs.Usage = func() {} // the error is enough, and is not to be lost above a list of all flags
	for {
		err := fs.Parse(args)
		if rest := fs.Args(); err != nil && len(rest) == len(args) {
			args = args[1:] // what has no name, such as "--=", package flag leaves there
		} else {
			args = rest
		}
		switch {
		case err != nil && !isInit || err == nil && len(args) == 0:
			return err
		case err != nil: // already told of
		case !isInit:
			err = fmt.Errorf("unexpected argument %q; all settings are flags", args[0])
			fmt.Fprintln(os.Stderr, "envd:", err)
			return err
		default:
			fmt.Fprintf(os.Stderr, "envd: argument %q is ignored\n", args[0])
			args = args[1:]
		}
	}
}

// sync is what the daemon does when it is called by that name: an image that
// holds nothing else still has the command that hosts run before they take a
// copy of its disk. With files it writes those out.
func sync(files []string) int {
	if err := linux.SyncAll(files...); err != nil {
		fmt.Fprintln(os.Stderr, "sync:", err)
		return 1
	}
	return 0
}
