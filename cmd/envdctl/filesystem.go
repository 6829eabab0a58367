package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"connectrpc.com/connect"

	pb "github.com/wrenn/envd/gen/filesystem"
)

// path is the only argument of a command, "" for none where none will do.
func path(fs *flag.FlagSet, args []string, least int) (string, error) {
	args, err := arguments(fs, args, least, 1, "one path")
	if err != nil || len(args) == 0 {
		return "", err
	}
	return args[0], nil
}

// plainPath is path for a command without flags.
func plainPath(name string, args []string, least int) (string, error) {
	return path(flag.NewFlagSet(name, flag.ContinueOnError), args, least)
}

func (a *app) ls(ctx context.Context, args []string) (int, error) {
	fs := flag.NewFlagSet("ls", flag.ContinueOnError)
	depth := fs.Uint("depth", 1, "`levels` to descend")
	dir, err := path(fs, args, 0)
	if err != nil {
		return exitUnable, err
	}
	res, err := a.client().Filesystem.ListDir(ctx, connect.NewRequest(&pb.ListDirRequest{Path: dir, Depth: uint32(min(*depth, 1<<16))}))
	if err != nil {
		return 1, fmt.Errorf("ls: %w", err)
	}
	return 0, printEntries(os.Stdout, res.Msg.Entries)
}

func (a *app) stat(ctx context.Context, args []string) (int, error) {
	name, err := plainPath("stat", args, 0)
	if err != nil {
		return exitUnable, err
	}
	res, err := a.client().Filesystem.Stat(ctx, connect.NewRequest(&pb.StatRequest{Path: name}))
	if err != nil {
		return 1, fmt.Errorf("stat: %w", err)
	}
	if err := printEntries(os.Stdout, []*pb.EntryInfo{res.Msg.Entry}); err != nil {
		return 1, err
	}
	for key, value := range res.Msg.Entry.Metadata {
		fmt.Printf("%s: %s\n", key, value)
	}
	return 0, nil
}

func printEntries(w io.Writer, entries []*pb.EntryInfo) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, e := range entries {
		name := quoted(e.Path)
		if e.SymlinkTarget != nil {
			name += " -> " + quoted(e.GetSymlinkTarget())
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\n", e.Permissions, e.Owner, e.Group, e.Size,
			e.ModifiedTime.AsTime().Local().Format("2006-01-02 15:04:05"), name)
	}
	return t.Flush()
}

// quoted is a name on one line of a terminal.
func quoted(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Sprintf("%q", name)
	}
	return name
}

func (a *app) mkdir(ctx context.Context, args []string) (int, error) {
	name, err := plainPath("mkdir", args, 1)
	if err != nil {
		return exitUnable, err
	}
	if _, err := a.client().Filesystem.MakeDir(ctx, connect.NewRequest(&pb.MakeDirRequest{Path: name})); err != nil {
		return 1, fmt.Errorf("mkdir: %w", err)
	}
	return 0, nil
}

func (a *app) mv(ctx context.Context, args []string) (int, error) {
	args, err := plain("mv", args, 2, 2, "two paths")
	if err != nil {
		return exitUnable, err
	}
	if _, err := a.client().Filesystem.Move(ctx, connect.NewRequest(&pb.MoveRequest{Source: args[0], Destination: args[1]})); err != nil {
		return 1, fmt.Errorf("mv: %w", err)
	}
	return 0, nil
}

func (a *app) rm(ctx context.Context, args []string) (int, error) {
	name, err := plainPath("rm", args, 1)
	if err != nil {
		return exitUnable, err
	}
	if _, err := a.client().Filesystem.Remove(ctx, connect.NewRequest(&pb.RemoveRequest{Path: name})); err != nil {
		return 1, fmt.Errorf("rm: %w", err)
	}
	return 0, nil
}

// watch prints a line for each change until the watch ends, which is always
// for a reason.
func (a *app) watch(ctx context.Context, args []string) (int, error) {
	fs := flag.NewFlagSet("watch", flag.ContinueOnError)
	req := &pb.WatchDirRequest{}
	fs.BoolVar(&req.Recursive, "r", false, "directories below, too")
	fs.BoolVar(&req.AllowNetworkMounts, "network", false, "also network mounts, where only what changes here is seen")
	var err error
	if req.Path, err = path(fs, args, 0); err != nil {
		return exitUnable, err
	}
	w, err := a.client().Watch(ctx, req)
	if err != nil {
		return 1, err
	}
	defer w.Close() //nolint:errcheck // has no error
	fmt.Println("watching")
	for {
		e, err := w.Next()
		if err != nil {
			return 1, err
		}
		line := strings.TrimPrefix(e.Type.String(), "EVENT_TYPE_") + " " + quoted(e.Name)
		if e.From != nil {
			line += " from " + quoted(e.GetFrom())
		}
		if _, err := fmt.Println(line); err != nil {
			return 1, fmt.Errorf("write event: %w", err)
		}
	}
}
