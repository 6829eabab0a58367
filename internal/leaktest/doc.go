// Package leaktest finds what a test leaves behind: goroutines, open
// descriptors and child processes.
//
// Check notes what exists when a test begins and compares when it ends, after
// everything that was registered with Cleanup later than Check. What is new is
// a leak. What takes a moment to go, such as a goroutine on its way to its
// return, has a few seconds for it; then the test fails, and the failure says
// what each leak is and where it comes from.
//
// What is compared belongs to the whole process, so a test that calls Check
// must not run in parallel with others. It may have parallel subtests.
//
// Memory is not looked at, nor are processes that have become somebody else's
// children: a test binary that is a child subreaper sees its orphans, another
// one does not.
package leaktest
