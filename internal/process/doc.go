// Package process runs commands and keeps what they say.
//
// A Table owns all processes, live and recently ended. Table.Start turns a
// Spec, a validated value without defaults left to apply, into a Process: a
// leader started by the reaper in a cgroup of its own, its pipes or terminal,
// and an Output, the log that any number of cursors read.
//
// A process goes running → exited → done → settled. Exited means that the
// leader was reaped; its output is then drained until end of file or, when a
// descendant holds it open, until a short quiet spell. Done means that the end
// is in the log, settled that no output and no descendant is left. See
// docs/PROCESS.md for the ordering.
//
// Goroutines: one poller reads the output of all processes. Everything else
// happens on the goroutine that brings the news: the reaper's, the poller's, a
// timer's, a caller's. Table.Close joins the poller and the timers.
// Everything exported is safe for concurrent use.
//
// The package knows no wire: messages, codes and streams are package api's.
package process
