package convert

import (
	"context"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// A ticking context counts how often it is asked whether it has ended. Loops ask once in so
// much work, so it is a clock that does not depend on the machine.
type ticking struct {
	context.Context
	ticks atomic.Int64
}

func (c *ticking) Err() error {
	c.ticks.Add(1)
	return c.Context.Err()
}

// TestProgress: every phase of a conversion for stock caches reports, from its start to its
// end, and no long stretch of work lies between two reports.
func TestProgress(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	tiny.HF(t, src, "qwen2", tiny.Options{Seed: 1, Layers: 3, Hidden: 128, HeadDim: 32})
	o := small(src, filepath.Join(dir, "out"))
	o.Alloc, o.Threads, o.ReportDetail = "sensitivity", 1, true
	o.Cache, o.TargetCtx, o.CacheTokens = &kvcache.CacheTypes{K: gguf.TypeQ4_0, V: gguf.TypeQ4_0, Rotation: true}, 64, 256

	ctx := &ticking{Context: t.Context()}
	type report struct {
		step        string
		done, total int
		at          int64
	}
	all := []report{{}}
	o.Progress = func(step string, done, total int) {
		if done < 0 || total < 1 || done > total {
			t.Errorf("%s: %d of %d", step, done, total)
		}
		all = append(all, report{step, done, total, ctx.ticks.Load()})
	}
	if _, err := Convert(ctx, o); err != nil {
		t.Fatal(err)
	}
	end := ctx.ticks.Load()

	var steps []string
	var longest int64
	var where report
	for i, x := range all[1:] {
		last := all[i]
		if x.step != last.step {
			if last.done != last.total {
				t.Errorf("%s ends at %d of %d", last.step, last.done, last.total)
			}
			steps = append(steps, x.step)
		} else if x.done < last.done && last.done != last.total {
			t.Errorf("%s goes from %d to %d of %d", x.step, last.done, x.done, x.total)
		}
		if gap := x.at - last.at; gap > longest {
			longest, where = gap, x
		}
	}
	if last := all[len(all)-1]; last.done != last.total {
		t.Errorf("%s ends at %d of %d", last.step, last.done, last.total)
	}
	for _, want := range []string{
		"statistics of keys at context 64", "fitting changes of keys", "comparing changes of keys", "comparing predictions",
		"fitting changes of values", "comparing changes of values",
		"reading weights", "allotting signs", "calibrating", "reading the source, MiB",
		"writing gguf, MiB", "writing safetensors, MiB", "checking query and key tensors, MiB",
		"measuring float and coded keys", "comparing float and coded keys", "running the source",
		"measuring the rounding floor",
		"comparing with the source", "comparing with the rounding floor",
		"probing keys and scores", "collecting keys of one head", "coding one layer at a time", "measuring other codes",
		"measuring context 48",
		"measuring cache types at context 64", "measuring cache types at context 64, converted",
	} {
		if !slices.Contains(steps, want) {
			t.Errorf("no report of the step %q", want)
		}
	}
	// One head's fit is the longest piece of work: some of 6 heads for each of some candidates.
	share := float64(longest) / float64(end)
	t.Logf("%d reports of %d steps; the longest stretch without one is %.1f %% of %d ticks, before %s, %d of %d",
		len(all)-1, len(steps), 100*share, end, where.step, where.done, where.total)
	if share > 0.06 {
		t.Errorf("%.1f %% of the work passes without a report, before %s, %d of %d", 100*share, where.step, where.done,
			where.total)
	}
}
