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

// TestKills ends the worker of a conversion at random moments: 50 times with PHASECONV_LONG, else 4. Each
// time a clear error comes, and no artifact; the layers that were fitted are kept, and the last conversion,
// which nobody disturbs, has the bytes of one that ran in one go.
func TestKills(t *testing.T) {
	w := start(t, llama.Start{})
	w.Close()
	kills := 4
	if os.Getenv("PHASECONV_LONG") != "" {
		kills = 50
	}
	src, dir := tinyFile(t), t.TempDir()
	run := func(out, work string, after time.Duration) error {
		w, err := llama.NewWorker(t.Context(), llama.Start{Dir: os.Getenv(libraryEnv), Program: builtWorker})
		if err != nil {
			return err
		}
		defer w.Close()
		if after > 0 {
			pids := workers(t)
			if len(pids) != 1 {
				t.Fatalf("%d child processes", len(pids))
			}
			stop := time.AfterFunc(after, func() {
				if p, err := os.FindProcess(pids[0]); err == nil {
					p.Kill() //nolint:errcheck // it may have ended
				}
			})
			defer stop.Stop()
		}
		o := convert.DefaultOptions()
		o.Source, o.Out, o.Work, o.Report, o.Threads, o.Tool = src, out, work, false, 1, "test"
		o.Formats, o.Code, o.Alloc = []checkpoint.Container{checkpoint.GGUF}, codec.SRHT, "uniform"
		o.Ctx, o.Chunks, o.CalibrationTokens = 128, 2, 512
		o.Calibration = ppl.Text{Name: texts.CalibrationName, Data: texts.Calibration}
		o.Evaluation = ppl.Text{Name: texts.EvaluationName, Data: texts.Evaluation}
		o.Engines = &llama.Engines{Worker: w, Place: llama.Place{Threads: 1}}
		_, err = convert.Convert(t.Context(), o)
		return err
	}
	began := time.Now()
	if err := run(filepath.Join(dir, "whole"), "", 0); err != nil {
		t.Fatal(err)
	}
	long := time.Since(began)
	r := rand.New(rand.NewPCG(3, 4))
	out, work := filepath.Join(dir, "out"), filepath.Join(dir, "work")
	failed := 0
	said := map[string]int{}
	for i := range kills {
		err := run(out, work, 1+time.Duration(r.Float64()*float64(long)))
		if err == nil { // it was faster
			if err := os.RemoveAll(out); err != nil {
				t.Fatal(err)
			}
			continue
		}
		failed++
		if !strings.Contains(err.Error(), llama.WorkerName) || !strings.Contains(err.Error(), "killed") {
			t.Errorf("kill %d: says %v", i, err)
		}
		said[strings.SplitN(err.Error(), "\n", 2)[0]]++
		if _, err := os.Stat(out); err == nil {
			t.Fatalf("kill %d: there is an artifact", i)
		}
		left, err := filepath.Glob(filepath.Join(dir, ".*"))
		if err != nil || len(left) > 0 {
			t.Fatalf("kill %d: left behind: %v", i, left)
		}
	}
	t.Logf("%d of %d conversions ended early: %v", failed, kills, said)
	if err := run(out, work, 0); err != nil {
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
