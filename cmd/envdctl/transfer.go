package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/wrenn/envd/client"
)

// cat prints files of the guest.
func (a *app) cat(ctx context.Context, args []string) (int, error) {
	args, err := plain("cat", args, 1, math.MaxInt, "a path")
	if err != nil {
		return exitUnable, err
	}
	for _, path := range args {
		if _, err := a.client().Download(ctx, path, os.Stdout); err != nil {
			return 1, err
		}
	}
	return 0, nil
}

// cp copies one file between here and the guest, whose paths begin with a colon.
func (a *app) cp(ctx context.Context, args []string) (int, error) {
	fs := flag.NewFlagSet("cp", flag.ContinueOnError)
	atomic := fs.Bool("atomic", false, "let readers see the whole file or the old one")
	args, err := arguments(fs, args, 2, 2, "a source and a destination")
	if err != nil {
		return exitUnable, err
	}
	from, fromGuest := strings.CutPrefix(args[0], ":")
	to, toGuest := strings.CutPrefix(args[1], ":")
	switch {
	case fromGuest == toGuest:
		return exitUnable, fmt.Errorf("cp: one of the two is in the guest and begins with a colon: see envdctl cp -h")
	case toGuest:
		if to == "" || strings.HasSuffix(to, "/") {
			to += filepath.Base(from)
		}
		return done(a.send(ctx, from, to, client.UploadOptions{Atomic: *atomic}))
	default:
		if fi, err := os.Stat(to); err == nil && fi.IsDir() {
			to = filepath.Join(to, filepath.Base(from))
		}
		return done(a.fetch(ctx, from, to))
	}
}

func done(err error) (int, error) {
	if err != nil {
		return 1, err
	}
	return 0, nil
}

func (a *app) send(ctx context.Context, from, to string, opts client.UploadOptions) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && !fi.Mode().IsRegular() {
		// A pipe cannot seek: it is sent once.
		return a.client().Upload(ctx, to, struct{ io.Reader }{f}, opts)
	}
	return a.client().Upload(ctx, to, f, opts)
}

// fetch downloads beside the target and renames, so that a broken one is not
// taken for whole.
func (a *app) fetch(ctx context.Context, from, to string) error {
	f, err := os.CreateTemp(filepath.Dir(to), ".envdctl-")
	if err != nil {
		return err
	}
	_, err = a.client().Download(ctx, from, f)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), to)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// pack and unpack stream tar archives: -z with gzip, -zstd with zstd.
func (a *app) pack(ctx context.Context, args []string) (int, error) {
	path, kind, err := archiveArguments("pack", args)
	if err != nil {
		return exitUnable, err
	}
	return done(a.client().Pack(ctx, path, kind, os.Stdout))
}

func (a *app) unpack(ctx context.Context, args []string) (int, error) {
	path, kind, err := archiveArguments("unpack", args)
	if err != nil {
		return exitUnable, err
	}
	return done(a.client().Unpack(ctx, path, kind, os.Stdin))
}

func archiveArguments(name string, args []string) (path string, kind client.ArchiveType, err error) {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	gzip := fs.Bool("z", false, "compressed with gzip")
	zstd := fs.Bool("zstd", false, "compressed with zstd")
	args, err = arguments(fs, args, 1, 1, "one directory")
	if err != nil {
		return "", "", err
	}
	switch {
	case *zstd:
		kind = client.TarZstd
	case *gzip:
		kind = client.TarGzip
	default:
		kind = client.Tar
	}
	return args[0], kind, nil
}
