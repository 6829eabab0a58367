package boot

import (
	"cmp"
	"errors"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// defaultPath is what the kernel starts init without.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// fileLimit is the hard limit on open files of everything in the machine, that
// of systemd. The kernel gives its init 4096, which a program cannot raise.
const fileLimit = 512 << 10

// Uptime is how long ago the kernel started.
func Uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // a kernel has it since 2.6.39
	}
	return time.Duration(ts.Nano())
}

// Up prepares the machine that this process is init of.
func Up(log *slog.Logger) {
	failed := func(step string, err error) {
		if err != nil {
			log.Warn("boot step did not work", "step", step, "error", err)
		}
	}
	_ = mounts[0].ensure() // mountMissing tries again, and tells
	params, errs := readParams()
	if !params.ReadOnly {
		errs = append(errs, writableRoot())
	}
	mountMissing(failed)
	failed("open the console", openConsole())
	for _, err := range errs {
		failed("begin", err) // now that it can be read
	}
	failed("mount /tmp", mountTmp())
	failed("allow more open files", linux.RaiseFileLimit(fileLimit))
	failed("restart after a panic", restartOnPanic())
	failed("catch Ctrl-Alt-Del", keepCtrlAltDel())
	if os.Getenv("PATH") == "" {
		failed("set PATH", os.Setenv("PATH", defaultPath))
	}
	loadModules(params.Modules, failed)
	failed("make /etc", os.MkdirAll("/etc", 0o755))
	failed("set the host name", setHostname(cmp.Or(params.Hostname, defaultHostname), "/etc/hosts"))
	failed("bring loopback up", loopbackUp())
	if err := networkUp(params); errors.Is(err, errNoNIC) {
		log.Info("the machine has no network interface")
	} else {
		failed("bring the network up", err)
	}
	failed("name DNS servers", writeResolver("/etc/resolv.conf", "/proc/net/pnp", params.DNS))
}

func readParams() (Params, []error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return Params{}, []error{err}
	}
	return ParseParams(string(line))
}

func loadModules(names []string, failed func(string, error)) {
	if len(names) == 0 {
		return
	}
	m, err := openModules("/")
	if err != nil {
		failed("load modules", err)
		return
	}
	for _, name := range names {
		failed("load module "+name, m.load(name))
	}
}
