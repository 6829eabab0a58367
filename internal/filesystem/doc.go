// Package filesystem is what a user's request does to files: entries and
// listings, directories, moves and removals, reading and writing of contents,
// metadata, and whole trees as tar archives.
//
// # Model
//
// A View is the filesystem as one request works with it: the user it acts for,
// and with whose reach. Every method takes paths as the client wrote them
// (see User.Resolve) and does the whole operation, the reading of its source
// included, on the calling goroutine.
//
// What is made belongs to the user. What may be reached depends on the View:
// by default everything that the daemon may reach, as clients of this wire
// expect; in a Confined view only what the user could reach itself, because
// the kernel checks the user's ids, groups and (absent) capabilities on a
// locked thread. Nothing in this package checks permissions on its own.
//
// # Names and descriptors
//
// A name can change its meaning between two system calls. So a file is pinned
// with O_PATH, looked at, and opened through its descriptor: FIFOs and devices
// are refused without being opened. What can only be named is named in a pinned
// directory (place). In a Confined view every path is walked by openat2 with
// RESOLVE_NO_MAGICLINKS, never by a call that follows more: the kernel would let
// the daemon's threads through links of /proc to what the daemon has open. Trees
// are walked relative to descriptors of their directories. An archive is unpacked
// with RESOLVE_BENEATH.
//
// Where data must appear whole it is written beside its target, under a name that
// starts with ".envd-", and renamed; a daemon that is killed leaves such a name.
//
// # Errors
//
// Errors name the operation and the path. Callers test them with errors.Is
// against the sentinels of this package and fs.ErrNotExist, fs.ErrExist and
// fs.ErrPermission.
//
// # Concurrency
//
// A View does not change and may be used by any number of goroutines. The
// package keeps no state and starts no goroutine; two requests that write one
// file meet in the kernel, as two programs would.
//
// It knows no users database, no HTTP and no RPC, and it does not watch.
package filesystem
