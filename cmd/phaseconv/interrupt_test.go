package main

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/phaseconv/phaseconv/internal/tiny"
)

// soon is how much processor time a command may use after an interrupt.
const soon = 2 * time.Second

// TestInterrupt sends SIGINT to commands at work, when they have used some processor time,
// and measures how much more they use until they end: wall time says little on a busy
// machine. They end with code 1 and a sentence, and leave nothing behind.
//
// PHASECONV_INTERRUPTS sets how many interrupts each command gets, at moments spread over its
// run; scripts/faults/interrupt.sh sets it. Without it there are a few early ones.
func TestInterrupt(t *testing.T) {
	many := 0
	if s := os.Getenv("PHASECONV_INTERRUPTS"); s != "" {
		var err error
		if many, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := cpuTime(os.Getpid()); !ok {
		t.Skip("the processor time of another process cannot be read here")
	}
	dir := t.TempDir()
	model, err := filepath.Abs("../../testdata/austen-moe")
	if err != nil {
		t.Fatal(err)
	}
	artifact := filepath.Join(dir, "artifact")
	cmd := exec.Command("phaseconv", "convert", model, "-o", artifact, "--code", "srht", "--calib-tokens", "192", "--ctx", "64", "--chunks", "1",
		"--report=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	deep := filepath.Join(dir, "deep")
	if many > 0 {
		// As many layers as a real model has, of heads as wide.
		tiny.HF(t, deep, "llama", tiny.Options{
			Seed: 1, Layers: 32, Hidden: 256, Heads: 8, KVHeads: 4, HeadDim: 128, FFN: 512, Context: 512, DType: "BF16",
		})
	}
	out := filepath.Join(dir, "made", "out")
	convert := func(model string, more ...string) []string {
		args := []string{"convert", model, "-o", out, "--cache-type-k", "q4_0", "--cache-type-v", "q4_0", "--target-ctx", "512"}
		return append(args, more...)
	}
	for _, x := range []struct {
		name string
		args []string
		few  []time.Duration // moments of a short test
		upTo time.Duration   // of the others; most of them hit
	}{
		{"convert", convert(model), []time.Duration{200 * time.Millisecond, 900 * time.Millisecond}, 40 * time.Second},
		{"convert short", convert(model, "--cache-tokens", "1024", "--calib-tokens", "1024"), nil, 20 * time.Second},
		{"convert 32 layers", convert(deep, "--cache-tokens", "1024", "--calib-tokens", "1024"), nil, 40 * time.Second},
		{"convert both containers", []string{
			"convert", deep, "-o", out, "--format", "both", "--code", "frame", "--calib-tokens", "512", "--ctx", "64", "--chunks", "1",
		}, nil, 10 * time.Second},
		{"verify", []string{"verify", artifact, "--source", model, "--chunks", "16"},
			[]time.Duration{400 * time.Millisecond}, 2 * time.Second},
		{"advise", []string{"advise", model, artifact, "--ctx", "256"},
			[]time.Duration{500 * time.Millisecond}, 4 * time.Second},
		{"audit", []string{"audit", model, "--ffn"}, []time.Duration{700 * time.Millisecond}, 8 * time.Second},
		{"ladder", []string{"ladder", model, "--ctx", "256"}, []time.Duration{900 * time.Millisecond}, 40 * time.Second},
		{"generate", []string{"generate", artifact, "-p", "It is", "-n", "500"}, []time.Duration{250 * time.Millisecond},
			500 * time.Millisecond},
		{"audit 32 layers", []string{"audit", deep, "--ffn"}, nil, 20 * time.Second},
	} {
		if many == 0 && x.few == nil {
			continue
		}
		t.Run(x.name, func(t *testing.T) {
			moments := x.few
			if many > 0 {
				r := rand.New(rand.NewPCG(uint64(many), uint64(len(x.name))))
				moments = nil
				for i := range many {
					moments = append(moments, time.Duration((float64(i)+r.Float64())/float64(many)*float64(x.upTo)))
				}
			}
			var worst, at, last time.Duration
			hit := 0
			for _, m := range moments {
				used, ended := interrupt(t, x.args, filepath.Dir(out), max(m, 150*time.Millisecond))
				if ended {
					continue // it was done before
				}
				last = m
				if hit++; used > worst {
					worst, at = used, m
				}
				if used > soon {
					t.Errorf("%v more of processor time after an interrupt at %v, at most %v is allowed", used, m, soon)
				}
			}
			if hit < (len(moments)+1)/2 {
				t.Errorf("%d of %d interrupts hit the command at work", hit, len(moments))
			}
			const unit = 10 * time.Millisecond
			t.Logf("%d interrupts up to %v; at worst %v more of processor time, after %v",
				hit, last.Round(unit), worst.Round(unit), at.Round(unit))
		})
	}
}

// interrupt runs a command that makes something in dir, interrupts it when it has used at of
// processor time, and returns how much more it used. ended says that it came to its own end
// before. After an interrupt the test fails if anything is left in dir.
func interrupt(t *testing.T, args []string, dir string, at time.Duration) (used time.Duration, ended bool) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "phaseconv", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	before := make(chan time.Duration, 1)
	go func() {
		defer close(before)
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
			if now, ok := cpuTime(cmd.Process.Pid); ok && now >= at {
				if cmd.Process.Signal(os.Interrupt) == nil {
					before <- now
				}
				return
			}
		}
	}()
	err := cmd.Wait()
	close(done)
	all := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	then, hit := <-before
	if !hit || cmd.ProcessState.ExitCode() == 0 {
		if code := cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("%v: %v\n%s", args, err, stderr.String())
			return all, false
		}
		return all, true
	}
	const sentence = "phaseconv: interrupted; nothing was left behind\n"
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(stderr.String(), sentence) {
		t.Errorf("interrupted after %v: exit code %d\n%s", then, code, stderr.String())
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("interrupted after %v it left %s", then, e.Name())
	}
	return all - then, false
}
