package watch

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// benchTree makes 1,000 directories below 10 and 100, with a few files.
func benchTree(b *testing.B) string {
	dir := b.TempDir()
	for i := range 1000 {
		p := fmt.Sprintf("%s/d%d/d%d/d%d", dir, i/100, i/10%10, i%10)
		mkdir(b, p)
		for j := range 3 {
			write(b, fmt.Sprintf("%s/f%d", p, j), "")
		}
	}
	return dir
}

// BenchmarkOpen1000 sets up a recursive watch; BenchmarkFloor1000 is what that
// costs at least: a walk with inotify_add_watch on each directory.
func BenchmarkOpen1000(b *testing.B) {
	dir := benchTree(b)
	for b.Loop() {
		w, err := Open(dir, Options{Recursive: true})
		must(b, err)
		b.StopTimer()
		must(b, w.Close())
		b.StartTimer()
	}
}

func BenchmarkFloor1000(b *testing.B) {
	dir := benchTree(b)
	for b.Loop() {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		must(b, err)
		must(b, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				_, err = unix.InotifyAddWatch(fd, path, dirMask)
			}
			return err
		}))
		b.StopTimer()
		must(b, unix.Close(fd))
		b.StartTimer()
	}
}

// BenchmarkLatency is the time from a change to its event in a waiting reader.
func BenchmarkLatency(b *testing.B) {
	dir := b.TempDir()
	w := watchDir(b, dir, true)
	name := filepath.Join(dir, "f")
	f, err := os.Create(name)
	must(b, err)
	defer f.Close()
	if _, err := w.next(); err != nil {
		b.Fatal(err)
	}
	seen := make(chan time.Time)
	go func() {
		defer close(seen)
		for {
			if _, err := w.Next(b.Context()); err != nil {
				return
			}
			seen <- time.Now()
		}
	}()
	var all []time.Duration
	for b.Loop() {
		began := time.Now()
		_, err := f.WriteAt([]byte("x"), 0)
		must(b, err)
		all = append(all, (<-seen).Sub(began))
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(float64(all[len(all)-1].Microseconds()), "max-µs")
	must(b, w.Close())
	<-seen
}

// BenchmarkEvents is the cost of an event in a busy directory, the kernel's part
// of making the change left out.
func BenchmarkEvents(b *testing.B) {
	dir := b.TempDir()
	mkdir(b, dir, "a/b/c")
	w := watchDir(b, dir, true)
	name := filepath.Join(dir, "a/b/c/file")
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for range 500 {
			write(b, name, "")
			remove(b, name)
		}
		b.StartTimer()
		for left := 1000; left > 0; {
			batch, err := w.Next(b.Context())
			must(b, err)
			left -= len(batch)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/event")
}

// BenchmarkOpen opens and closes a watcher that is not recursive.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	b.ReportAllocs()
	for b.Loop() {
		w, err := Open(dir, Options{})
		must(b, err)
		must(b, w.Close())
	}
}
