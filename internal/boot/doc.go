// Package boot is what an init process owes its machine: Up prepares it before
// the daemon serves, and Down takes it down in order.
//
// Up mounts what the kernel leaves to user space, names the machine, loads
// modules, brings up loopback and the first NIC and steps the clock. It takes
// its settings from the kernel's command line (Params). No step is fatal: each
// that does not work becomes one line of the log, which is the console, and the
// next step follows. Up expects nothing of the image, not even a directory.
//
// Clock keeps the wall clock at the host's while the machine runs, where there
// is a clock of the host to read. It has the only goroutine of the package. The
// package starts no process and waits for none: reaping is package reap's.
package boot
