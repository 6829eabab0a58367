// Package watch reports what changes in a directory, or in a tree of
// directories, through inotify(7).
//
// # Model
//
// A Watcher owns one inotify descriptor and is read with Next on the caller's
// goroutine; it has no goroutine of its own. Each kernel event becomes one
// Event, in the kernel's order. A Set owns watchers that are polled by id: each
// has one goroutine that moves events into a bounded queue.
//
// A recursive watcher keeps one node for each directory, so that a watch
// descriptor has a path even after its directory, or one above it, was moved.
// The kernel's queue tells the past while the filesystem shows the present, and
// a directory can have been filled, moved or replaced before its creation is
// read. Three rules keep the two together:
//
//   - A new directory is watched first and listed second. What the list shows is
//     reported as CREATE, and the kernel's own event for it, if there is one, is
//     left out. Such events lie before the fence: the length of the queue at the
//     end of the list.
//   - Before its fence, a directory found by a list may have come to its name
//     after events about that name that are still queued. Such an event drops
//     what was found, and the event of its real arrival finds it again.
//   - A directory is opened relative to its parent's descriptor, or by its path
//     with the inode compared. Where the path leads elsewhere, a move is still
//     queued, and the directory is tried again after it.
//
// # What a reader may rely on
//
// A rename is RENAME with the old name and then CREATE with the new one. When
// CREATE has From, what was below the old name is below the new one now and is
// not reported again. CREATE of a directory without From is a new one, and each
// entry in it gets its own CREATE. So a reader that applies the events to a copy
// of the tree ends with the tree, or with an error: ErrOverflow when events were
// lost, ErrRootRemoved when there is nothing left to watch.
//
// An entry moved into a directory that is only just being listed may be reported
// there before the RENAME of its old name.
//
// # Limits
//
// Symbolic links below the root are not followed. Directories that may not be
// read, and network mounts below the root unless they are allowed, are reported
// but not followed. A directory visible at two places through a bind mount is
// followed at one of them. Two files exchanged by renameat2(2) look like two
// renames, the second over nothing: the kernel's events do not tell them apart.
package watch
