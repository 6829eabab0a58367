// Package cgroups finds the cgroup v2 hierarchy of the machine that tests and
// benchmarks run on.
package cgroups

import "golang.org/x/sys/unix"

// Mount is where cgroup v2 is mounted: beside version 1, or alone, as on most
// machines. Where it is not mounted at all, what is done there fails.
func Mount() string {
	const beside = "/sys/fs/cgroup/unified"
	var st unix.Statfs_t
	if unix.Statfs(beside, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		return beside
	}
	return "/sys/fs/cgroup"
}
