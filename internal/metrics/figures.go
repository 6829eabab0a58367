package metrics

import (
	"errors"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// Host adds what the machine uses.
func (t *Text) Host() error {
	cpu, err := ReadCPU()
	if err != nil {
		return err
	}
	mem, err := ReadMemory()
	if err != nil {
		return err
	}
	disk, err := ReadDisk("/")
	if err != nil {
		return err
	}
	t.Gauge("envd_host_cpus", "Processors online.")
	t.Sample(float64(cpu.Count))
	t.Counter("envd_host_cpu_seconds", "Time of all processors since boot, by what it was spent on.")
	cpu.Modes(func(mode string, d time.Duration) { t.Seconds(d, "mode", mode) })
	t.bytes("envd_host_memory_size_bytes", "Memory of the machine.", mem.Total)
	t.bytes("envd_host_memory_used_bytes", "Memory that programs could not get.", mem.Used)
	t.bytes("envd_host_memory_cache_bytes", "Memory that holds files, and what else the kernel can take back.", mem.Cache)
	t.bytes("envd_host_disk_size_bytes", "Size of the root filesystem.", disk.Total)
	t.bytes("envd_host_disk_used_bytes", "Used space of the root filesystem.", disk.Used)
	return t.pressure()
}

func (t *Text) bytes(name, help string, n uint64) {
	t.Gauge(name, help)
	t.Sample(float64(n))
}

// pressure adds nothing where the kernel does not account for it.
func (t *Text) pressure() error {
	var all [len(Resources)]Pressure
	for i, resource := range Resources {
		p, err := ReadPressure(resource)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EOPNOTSUPP):
			return nil
		case err != nil:
			return err
		}
		all[i] = p
	}
	t.Counter("envd_host_pressure_waiting_seconds", "Time in which some task waited for the resource.")
	for i, resource := range Resources {
		t.Seconds(all[i].Waiting, "resource", resource)
	}
	t.Counter("envd_host_pressure_stalled_seconds", "Time in which all tasks that had something to do waited for the resource.")
	for i, resource := range Resources {
		t.Seconds(all[i].Stalled, "resource", resource)
	}
	return nil
}

// Self adds what this process uses, under the names that every process has.
func (t *Text) Self() error {
	s, err := ReadSelf()
	if err != nil {
		return err
	}
	t.Counter("process_cpu_seconds", "Processor time of the daemon.")
	t.Seconds(s.CPU)
	t.bytes("process_resident_memory_bytes", "Memory of the daemon.", s.Resident)
	t.bytes("process_anonymous_memory_bytes", "Memory of the daemon that no file holds.", s.Anonymous)
	t.Gauge("process_open_fds", "Descriptors of the daemon.")
	t.Sample(float64(s.Descriptors))
	t.Gauge("process_threads", "Threads of the daemon.")
	t.Sample(float64(s.Threads))
	t.Gauge("go_goroutines", "Goroutines of the daemon.")
	t.Sample(float64(s.Goroutines))
	t.bytes("go_heap_objects_bytes", "Heap of the daemon, what is to be collected included.", s.Heap)
	return nil
}
