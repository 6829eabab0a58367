// Package metrics reads what the machine and the daemon use: processor time,
// memory, disk, pressure; and writes figures in the text formats of Prometheus
// and OpenMetrics.
//
// Everything is read when it is asked for. There is no sampling: what is a
// rate, the use of the processor, comes from what a Machine remembers of
// earlier calls. It knows no figures of other parts: who serves them writes
// them with a Text.
package metrics
