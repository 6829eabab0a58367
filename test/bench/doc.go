// Command bench measures the daemon against floors: bare programs that do the
// least that the same work can cost on the same machine, in the same run.
//
//	go run ./test/bench [-quick] [-only name]
//
// It builds the daemon as a release is built, starts it on a free port with a
// cgroup of its own, and prints one table: our figure, the floor's, their
// ratio and the target. Machines are noisy, so ours and the floor take turns
// in rounds and medians are compared; the ratio is what counts, not the
// figure. A missed target is printed, never an error: the exit status is not 0
// only when something broke.
//
// There is one file per figure. The floors are the programs below floor/, each
// a process of its own as the daemon is; child/ is the program whose output is
// measured. Clients share the processors with what they measure, so wire.go
// speaks HTTP/1.1 and Connect by hand, with no more work than the bytes need.
//
// Each figure owns the processes it starts and ends them. There is no
// concurrency but the clients' own.
package main
