package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/wrenn/envd/internal/linux"
)

// mountLimit is what all mounts of one call get together, from the wire
// contract.
const mountLimit = 10 * time.Second

// Errors of mounts.
var (
	ErrMountTarget = errors.New("invalid mount")
	// ErrMount means that a mount was tried and is not there.
	ErrMount = errors.New("not mounted")
)

// Mount says what to mount where.
type Mount struct {
	Source string // host:/directory, as the caller wrote it
	Host   string // of Source
	Path   string // absolute and clean
}

// ParseMount reads an NFS source, host:/directory with brackets around an IPv6
// address, and where to mount it.
func ParseMount(source, path string) (Mount, error) {
	bad := func(why string) (Mount, error) {
		return Mount{}, fmt.Errorf("%w: %q on %q: %s", ErrMountTarget, source, path, why)
	}
	host, dir, ok := strings.Cut(source, ":/")
	if inner, bracketed := strings.CutPrefix(host, "["); bracketed {
		// The first ":/" may be inside of a shortened address.
		inner, rest, closed := strings.Cut(inner+":/"+dir, "]")
		addr, err := netip.ParseAddr(inner)
		if !closed || err != nil || !addr.Is6() || addr.Zone() != "" {
			return bad("no IPv6 address in the brackets")
		}
		host, ok = inner, strings.HasPrefix(rest, ":/")
	} else if strings.ContainsAny(host, ":/ ,") {
		return bad("host is malformed")
	}
	switch {
	case !ok || host == "":
		return bad("source is not host:/directory")
	case !filepath.IsAbs(path):
		return bad("path is not absolute")
	case filepath.Clean(path) == "/":
		return bad("path is the root directory")
	case strings.ContainsRune(source+path, 0):
		return bad("there is a zero byte in it")
	}
	return Mount{Source: source, Host: host, Path: filepath.Clean(path)}, nil
}

// Options are those that the kernel's NFS client takes (nfs(5)): version 3 over
// TCP, everything on port 2049, the MOUNT protocol included, so that no port
// mapper is asked. addr is that of the host.
//
// Locks stay in this guest (nolock): they would need a daemon of their own,
// rpc.statd, and ports beside 2049. There are no access control lists (noacl),
// which are another protocol. Otherwise the kernel's defaults hold: an
// operation waits for a server that is away (hard), and can be killed.
func (m Mount) Options(addr netip.Addr) string {
	return "addr=" + addr.String() + ",vers=3,proto=" + netid(addr) + ",port=2049,mountvers=3,mountproto=" + netid(addr) +
		",mountport=2049,nolock,noacl"
}

// netid is the name of TCP over the family of addr.
func netid(addr netip.Addr) string {
	if addr.Is4() {
		return "tcp"
	}
	return "tcp6"
}

// Mounter mounts where a mount that hangs can be ended.
type Mounter interface {
	// Mount mounts m from addr, after it has made the directory. It gives up
	// when ctx ends. With keep, an NFS mount that is there already stays,
	// without, it is taken away first.
	Mount(ctx context.Context, m Mount, addr netip.Addr, keep bool) error
	// Unmount undoes Mount.
	Unmount(ctx context.Context, m Mount) error
}

// mounts are the volumes that the host has asked for. Its methods are not safe
// for concurrent use.
type mounts struct {
	mounter Mounter
	made    map[string]volume // by path
}

// volume is a mount of ours.
type volume struct{ source, lifecycle string }

// apply mounts all of list, in parallel, within mountLimit: or none of those
// that were not there before. What an earlier call mounted for the same
// lifecycle is left alone.
func (ms *mounts) apply(ctx context.Context, list []Mount, lifecycle string) error {
	if len(list) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, mountLimit)
	defer cancel()
	errs, done := make([]error, len(list)), make([]chan struct{}, len(list))
	for i := range list {
		done[i] = make(chan struct{})
	}
	var wg sync.WaitGroup
	for i, m := range list {
		wg.Go(func() {
			defer close(done[i])
			for j, other := range list { // what m lies in comes first
				if strings.HasPrefix(m.Path, other.Path+"/") {
					<-done[j]
				}
			}
			errs[i] = ms.one(ctx, m, ms.made[m.Path] == volume{m.Source, lifecycle})
		})
	}
	wg.Wait()
	err := errors.Join(errs...)
	for i, m := range list {
		switch {
		case errs[i] != nil:
			delete(ms.made, m.Path) // whatever is there
		case err == nil:
			ms.made[m.Path] = volume{m.Source, lifecycle}
		case ms.made[m.Path] != volume{m.Source, lifecycle}:
			err = errors.Join(err, ms.undo(ctx, m))
		}
	}
	return err
}

// undo takes a mount away that this call made. It has a moment of its own: the
// time of the call may be up.
func (ms *mounts) undo(ctx context.Context, m Mount) error {
	delete(ms.made, m.Path)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	return ms.mounter.Unmount(ctx, m)
}

// one mounts m. Its errors name the source, as the host knows it.
func (ms *mounts) one(ctx context.Context, m Mount, keep bool) error {
	if keep {
		if kind, err := linux.MountKind(m.Path); err == nil && strings.HasPrefix(kind, "nfs") {
			return nil
		}
	}
	addr, err := resolveHost(ctx, m.Host)
	if err == nil {
		err = ms.mounter.Mount(ctx, m, addr, keep)
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %s on %s: no answer within %v", ErrMount, m.Source, m.Path, mountLimit)
	default:
		return fmt.Errorf("%w: %s on %s: %v", ErrMount, m.Source, m.Path, err)
	}
}

// resolveHost answers an address of host, which may be one.
func resolveHost(ctx context.Context, host string) (netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr, nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("look up: %w", err)
	}
	return addrs[0].Unmap(), nil
}
