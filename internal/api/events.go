package api

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/internal/process"
)

var keepAliveEvent = &pb.ProcessEvent{
	Event: &pb.ProcessEvent_Keepalive{Keepalive: &pb.ProcessEvent_KeepAlive{}},
}

func startEvent(p *process.Process) *pb.ProcessEvent {
	return &pb.ProcessEvent{
		Event: &pb.ProcessEvent_Start{Start: &pb.ProcessEvent_StartEvent{Pid: uint32(p.Pid())}},
	}
}

func gapEvent(g *process.Gap) *pb.ProcessEvent {
	return &pb.ProcessEvent{
		Event: &pb.ProcessEvent_Gap_{Gap: &pb.ProcessEvent_Gap{From: uint64(g.From), To: uint64(g.To)}},
	}
}

func endEvent(e *process.Exit) *pb.ProcessEvent {
	return &pb.ProcessEvent{Event: &pb.ProcessEvent_End{End: exitMessage(e)}}
}

func exitMessage(e *process.Exit) *pb.ProcessEvent_EndEvent {
	end := &pb.ProcessEvent_EndEvent{
		ExitCode:   int32(e.Code()),
		Exited:     e.Exited(),
		Status:     e.String(),
		OutputOpen: e.OutputOpen,
		OomKilled:  e.OOMKilled,
		Usage: &pb.ProcessEvent_Usage{
			CpuUserUs:       uint64(e.Usage.User.Microseconds()),
			CpuSystemUs:     uint64(e.Usage.System.Microseconds()),
			PeakMemoryBytes: uint64(e.Usage.PeakMemory),
		},
	}
	if !e.Exited() || e.Code() != 0 {
		end.Error = proto.String(e.String())
	}
	return end
}

func processMessage(p *process.Process) *pb.ProcessInfo {
	config, kept := p.Label().(*pb.ProcessConfig)
	if !kept {
		config = &pb.ProcessConfig{Cmd: p.Name}
	}
	info := &pb.ProcessInfo{
		Config:      config,
		Pid:         uint32(p.Pid()),
		StartedAt:   timestamppb.New(p.Started),
		State:       pb.ProcessState_PROCESS_STATE_RUNNING,
		OutputBytes: uint64(p.Written()),
	}
	if p.HasTag {
		info.Tag = proto.String(p.Tag)
	}
	if !p.Running() {
		info.State = pb.ProcessState_PROCESS_STATE_EXITED
	}
	if e := p.Exit(); e != nil {
		info.End = exitMessage(e)
	}
	return info
}
