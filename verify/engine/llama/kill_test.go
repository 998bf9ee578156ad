package llama_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// workers are the process ids of this process's workers (Linux).
func workers(t *testing.T) []int {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(tasks) == 0 {
		t.Skip("NOT TESTED: no list of child processes")
	}
	var out []int
	for _, f := range tasks {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that ended
		}
		for _, s := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(s); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

// interruptible converts a small model with a work folder, in a worker of its own; meanwhile is called when that
// has started, and what it returns when the conversion has ended.
func interruptible(t *testing.T, start llama.Start, src, out, work string, meanwhile func() (end func())) error {
	t.Helper()
	start.Dir, start.Program = os.Getenv(libraryEnv), builtWorker
	w, err := llama.NewWorker(t.Context(), start)
	if err != nil {
		return err
	}
	defer w.Close()
	if meanwhile != nil {
		defer meanwhile()()
	}
	o := convert.DefaultOptions()
	o.Source, o.Out, o.Work, o.Report, o.Threads, o.Tool = src, out, work, false, 1, "test"
	o.Formats, o.Code, o.Alloc = []checkpoint.Container{checkpoint.GGUF}, codec.SRHT, "uniform"
	o.Ctx, o.Chunks, o.CalibrationTokens = 128, 2, 512
	o.Calibration = ppl.Text{Name: texts.CalibrationName, Data: texts.Calibration}
	o.Evaluation = ppl.Text{Name: texts.EvaluationName, Data: texts.Evaluation}
	o.Engines = &llama.Engines{Worker: w, Place: llama.Place{Threads: 1, GPULayers: -1}}
	_, err = convert.Convert(t.Context(), o)
	return err
}

// kill ends a process.
func kill(pid int) {
	if p, err := os.FindProcess(pid); err == nil {
		p.Kill() //nolint:errcheck // it may have ended
	}
}

// disturb converts again and again, and calls victim(), which says what process to end, at a random moment of
// each conversion: 50 times with PHASECONV_LONG, else 4. Each time an error with all of says comes, and no
// artifact; the layers that were fitted are kept, and the last conversion, which nobody disturbs, has the bytes of
// one that ran in one go. begin prepares each conversion.
func disturb(t *testing.T, begin func() llama.Start, victim func() int, says ...string) {
	t.Helper()
	kills := 4
	if os.Getenv("PHASECONV_LONG") != "" {
		kills = 50
	}
	src, dir := tinyFile(t), t.TempDir()
	began := time.Now()
	if err := interruptible(t, begin(), src, filepath.Join(dir, "whole"), "", nil); err != nil {
		t.Fatal(err)
	}
	long := time.Since(began)
	r := rand.New(rand.NewPCG(3, 4))
	out, work := filepath.Join(dir, "out"), filepath.Join(dir, "work")
	failed := 0
	said := map[string]int{}
	for i := range kills {
		after := 1 + time.Duration(r.Float64()*float64(long))
		began := time.Now()
		err := interruptible(t, begin(), src, out, work, func() func() {
			pid := victim()
			stop := time.AfterFunc(after, func() { kill(pid) })
			return func() { stop.Stop() }
		})
		if err == nil { // it was faster
			long = min(long, time.Since(began))
			if err := os.RemoveAll(out); err != nil {
				t.Fatal(err)
			}
			continue
		}
		failed++
		for _, s := range says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("kill %d: says %v", i, err)
			}
		}
		if said[err.Error()]++; said[err.Error()] == 1 {
			t.Logf("kill %d: %v", i, err)
		}
		if _, err := os.Stat(out); err == nil {
			t.Fatalf("kill %d: there is an artifact", i)
		}
		left, err := filepath.Glob(filepath.Join(dir, ".*"))
		if err != nil || len(left) > 0 {
			t.Fatalf("kill %d: left behind: %v", i, left)
		}
	}
	if failed == 0 && kills > 4 {
		t.Errorf("none of %d conversions ended early", kills)
	}
	t.Logf("%d of %d conversions ended early", failed, kills)
	if err := interruptible(t, begin(), src, out, work, nil); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"model.gguf", "model.phase.gguf"} {
		a, err := os.ReadFile(filepath.Join(dir, "whole", f))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(out, f))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(a, b) {
			t.Errorf("%s differs from that of an undisturbed conversion", f)
		}
	}
}

// TestKills ends the worker of a conversion.
func TestKills(t *testing.T) {
	start(t, llama.Start{}).Close()
	disturb(t, func() llama.Start { return llama.Start{} }, func() int {
		pids := workers(t)
		if len(pids) != 1 {
			t.Fatalf("%d child processes", len(pids))
		}
		return pids[0]
	}, llama.WorkerName, "killed")
}

// TestServerKills ends one of the two RPC servers that compute.
func TestServerKills(t *testing.T) {
	if os.Getenv(libraryEnv) == "" {
		start(t, llama.Start{}) // skips
	}
	servers := []*rpcServer{server(t), server(t)}
	n := 0
	disturb(t, func() llama.Start {
		s := llama.Start{}
		for _, x := range servers {
			x.restart(t)
			s.RPC = append(s.RPC, x.at)
		}
		return s
	}, func() int {
		n++
		return servers[n%2].cmd.Process.Pid
	}, "RPC server", servers[0].at, servers[1].at)
}
