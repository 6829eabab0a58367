// Package snapshot brings the daemon to rest before its machine is frozen, and
// back afterwards.
//
// # Model
//
//	           Prepare                          Return or Restore
//	running ───────────► preparing ─► prepared ───────────────────► restoring ─► running
//
// A Coordinator has one state. Prepare, Return and Restore are transitions; they
// take turns, each ends within a known time, and each may be called in any
// state. Prepare shuts the gate that every start of a process passes, stops the
// parts that work by themselves, writes the root filesystem out, has idle
// connections closed and the heap made small. Return undoes that and nothing
// else: the freeze may not have happened. Restore is the host's word that it
// has: it begins a new generation and ends the connections of older ones.
//
// Parts are quiesced in the reverse of the order they were registered in and
// resumed in that order. A part that fails to come to rest does not hold up the
// freeze, which the host does anyway.
//
// The workload, what the guest runs, can be frozen as well. It is thawed by
// Restore, by a Return that needs it, or by a watchdog. The gate is shut while
// it is frozen.
//
// # Concurrency
//
// All methods are safe for concurrent use. Away is one atomic load, for the
// path of every request. Enter waits only while a transition is under way.
//
// The package knows neither requests nor processes: what a part is, and which
// request brings the guest back, its users decide.
package snapshot
