package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/wrenn/envd/client"
)

// envFlags collects NAME=VALUE, and NAME alone for one that is to go.
type envFlags map[string]*string

func (e envFlags) String() string { return "" }

func (e envFlags) Set(s string) error {
	name, value, given := strings.Cut(s, "=")
	e[name] = nil
	if given {
		e[name] = &value
	}
	return nil
}

// init tells the guest what a host tells it after a boot or a restore.
func (a *app) init(ctx context.Context, args []string) (int, error) {
	in := client.Init{EnvVars: make(map[string]*string)}
	fs := flag.NewFlagSet("init", flag.ContinueOnError)
	// The token is no argument: others see those.
	clearToken := fs.Bool("clear-token", false, "set no token, instead of that of -token or ENVD_TOKEN")
	fs.StringVar(&in.DefaultUser, "default-user", "", "default `user`")
	fs.StringVar(&in.DefaultWorkdir, "workdir", "", "default working `directory`")
	fs.Var(envFlags(in.EnvVars), "env", "`NAME=VALUE` to set, or NAME to remove; may be repeated")
	fs.StringVar(&in.HyperloopIP, "events", "", "`address` of events.wrenn.local")
	fs.StringVar(&in.LifecycleID, "lifecycle", "", "`id` that the volumes belong to")
	setTime := fs.Bool("time", false, "send the time, for the guest to set its clock by")
	bundle := fs.String("ca", "", "`file` of PEM certificates to trust")
	fs.Func("volume", "`HOST:/DIRECTORY=PATH` to mount; may be repeated", func(s string) error {
		target, path, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("no =PATH")
		}
		in.VolumeMounts = append(in.VolumeMounts, client.VolumeMount{NFSTarget: target, Path: path})
		return nil
	})
	if _, err := arguments(fs, args, 0, 0, "flags only"); err != nil {
		return exitUnable, err
	}
	if !*clearToken {
		in.AccessToken = a.token
	}
	if *bundle != "" {
		text, err := os.ReadFile(*bundle)
		if err != nil {
			return exitUnable, err
		}
		in.CABundle = string(text)
	}
	if *setTime {
		now := time.Now()
		in.Timestamp = &now
	}
	if err := a.client().Init(ctx, in); err != nil {
		return 1, err
	}
	return 0, nil
}

// envs shows the default environment of processes.
func (a *app) envs(ctx context.Context, args []string) (int, error) {
	if _, err := plain("envs", args, 0, 0, "no argument"); err != nil {
		return exitUnable, err
	}
	env, err := a.client().Envs(ctx)
	if err != nil {
		return 1, err
	}
	lines := make([]string, 0, len(env))
	for name, value := range env {
		lines = append(lines, name+"="+value)
	}
	slices.Sort(lines)
	for _, line := range lines {
		fmt.Println(line)
	}
	return 0, nil
}
