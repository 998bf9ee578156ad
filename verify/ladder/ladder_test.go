package ladder

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// TestLiveHoldsAll: a state with a slot for every token changes nothing in the model, one with
// none does; and windows that copy are what they should be.
func TestLiveHoldsAll(t *testing.T) {
	ck := tiny.Open(t, "qwen2", tiny.Options{Seed: 1})
	ctx := context.Background()
	m := refmodel.New(ck.Config, ck, 2)
	tokens := tiny.Windows(ck.Config, 3, 64)
	w := ppl.From(tokens[1:], 32)
	var set, none []*replacement
	opt := refmodel.Options{}
	opt.Hooks.Attention = func(a *refmodel.Attention) error {
		l, err := fitLayer(ctx, capture(ck.Config, a, 1, true), 32, 2)
		if err != nil {
			return err
		}
		o := slotOptions{window: 8, sinks: 2, cost: costProd, kappa: 0.5, saturation: 0.25}
		set = append(set, &replacement{layer: a.Layer, stats: l.stats, o: o, slots: []int{64, 64}, share: 1})
		none = append(none, &replacement{layer: a.Layer, stats: l.stats, o: o, slots: []int{0, 0}})
		return nil
	}
	if err := m.Run(ctx, tokens, []*refmodel.Variant{{}}, opt); err != nil {
		t.Fatal(err)
	}
	got, err := live(ctx, m, w, [][]*replacement{set, set[1:], none}, func(done, total int) {})
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range got[:2] {
		if x.LogitsStrict > 1e-4 || math.Abs(x.NLLInflation) > 1e-5 || len(x.Layers) != 2-i ||
			math.Abs(x.CopyLive-x.CopyNLL) > 1e-4 {
			t.Errorf("a state of all tokens: %+v", x)
		}
	}
	if got[2].LogitsStrict < 1e-3 || got[2].LogitsStrict < got[2].Logits {
		t.Errorf("window only: %+v", got[2])
	}
	c := repeated(w)
	for i, id := range c.Tokens[1] {
		if id != w.Tokens[1][i%32] {
			t.Fatalf("token %d of a copying window is %d", i, id)
		}
	}
}

// TestRidge: what is a linear map of the input is put right.
func TestRidge(t *testing.T) {
	ck := tiny.Open(t, "llama", tiny.Options{Seed: 2})
	m := refmodel.New(ck.Config, ck, 1)
	var l *layer
	opt := refmodel.Options{}
	opt.Hooks.Attention = func(a *refmodel.Attention) (err error) {
		if a.Layer == 0 {
			l, err = fitLayer(context.Background(), capture(ck.Config, a, 4, true), 32, 1)
		}
		return err
	}
	if err := m.Run(context.Background(), tiny.Windows(ck.Config, 6, 64), []*refmodel.Variant{{}}, opt); err != nil {
		t.Fatal(err)
	}
	r := newRidge(l)
	width := l.y.Heads * l.y.HeadDim
	var outputs [][]float32
	var before squares
	for w := range l.windows {
		o := append([]float32(nil), r.exact[w]...)
		for row := range l.T {
			for i := range width {
				o[row*width+i] -= 0.1 * l.X[(w*l.T+row)*l.hidden+i%l.hidden]
			}
		}
		for i := l.T / 2 * width; i < len(o); i++ {
			before.diff += float64(o[i]-r.exact[w][i]) * float64(o[i]-r.exact[w][i])
			before.norm += float64(r.exact[w][i]) * float64(r.exact[w][i])
		}
		outputs = append(outputs, o)
	}
	e, penalty, err := r.correct(context.Background(), outputs, -1)
	if err != nil {
		t.Fatal(err)
	}
	if penalty != penalties[0] || e.out.rel() > 0.1*before.rel() {
		t.Errorf("penalty %g, held-out error %g, %g before", penalty, e.out.rel(), before.rel())
	}
}

// words is text of its own for fit and for evaluation.
func words(seed, n int) []byte {
	var b bytes.Buffer
	for i := range n {
		for _, c := range []byte{'a', 'e', 'o'} {
			b.WriteByte(byte('b' + (i*i*seed+i*7+seed)%20))
			b.WriteByte(c)
		}
		b.WriteByte(' ')
	}
	return b.Bytes()
}

func small() Options {
	o := DefaultOptions()
	o.Ctx, o.FitWindows, o.EvalWindows, o.Queries, o.Tool = []int{64}, 2, 1, 32, "test"
	o.Fit, o.Eval = ppl.Text{Name: "fit", Data: words(3, 400)}, ppl.Text{Name: "eval", Data: words(5, 400)}
	return o
}

// TestRun: the whole ladder of a tiny model is the same with any number of threads, is taken up
// again from its folder, and not where something changed.
func TestRun(t *testing.T) {
	ck := tiny.Open(t, "gemma3_text", tiny.Options{Seed: 3, Layers: 4})
	ctx := context.Background()
	o := small()
	o.Out = filepath.Join(t.TempDir(), "rungs")
	o.Threads = 1
	o.Layers = "all"
	first, err := Run(ctx, ck, o)
	if err != nil {
		t.Fatal(err)
	}
	plain := func(j *spec.LadderJSON) string {
		for i := range j.Records {
			j.Records[i].Seconds = 0
		}
		b, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		if err := spec.ValidateReport("LadderJSON", b); err != nil {
			t.Error(err)
		}
		return string(b)
	}
	native := 0
	for _, l := range first.Records[1].Layers {
		if l.Native {
			native++
		}
	}
	if native == 0 {
		t.Error("no layer of a model with windows is native")
	}
	want := plain(first)
	again := o
	again.Out, again.Threads = "", 3
	if x, err := Run(ctx, ck, again); err != nil || plain(x) != want {
		t.Errorf("with 3 threads: %v\n%s\n%s", err, plain(x), want)
	}
	var use *option.Error
	if _, err := Run(ctx, ck, o); !errors.As(err, &use) || !strings.Contains(err.Error(), "--resume") {
		t.Errorf("a folder with records: %v", err)
	}
	o.Resume = true
	ended, cancel := context.WithCancel(ctx)
	steps := 0
	o.Progress = func(step string, _, _ int) {
		if strings.HasPrefix(step, "RW") {
			steps++
		}
	}
	if x, err := Run(ended, ck, o); err != nil || plain(x) != want || steps > 0 {
		t.Errorf("resumed: %v, %d steps", err, steps)
	}
	if x, err := Read(o.Out); err != nil || plain(x) != want {
		t.Errorf("read: %v", err)
	}
	path := recordPath(o.Out, "RW1.1", 64)
	other, err := readRecord(path)
	if err != nil {
		t.Fatal(err)
	}
	other.Fit.SHA256 = strings.Repeat("0", 64)
	if err := writeRecord(o.Out, other); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(o.Out); err == nil || !strings.Contains(err.Error(), "other models or texts") {
		t.Errorf("records of two texts: %v", err)
	}
	if err := os.WriteFile(path, []byte("{}"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(o.Out); err == nil || !strings.Contains(err.Error(), "RW1.1-64.rung.json") {
		t.Errorf("a broken record: %v", err)
	}
	o.Progress = func(step string, done, _ int) {
		if step == "RW1.1 at 64 tokens" {
			steps++
			cancel()
		}
	}
	if _, err := Run(ended, ck, o); !errors.Is(err, context.Canceled) || steps == 0 {
		t.Errorf("cancelled: %v, %d steps", err, steps)
	}
	cancel()
}

// TestBlocked: a rung that may not run leaves a record that says why, and --resume looks again.
func TestBlocked(t *testing.T) {
	o := small()
	o.Out, o.Resume = t.TempDir(), true
	s := &session{o: &o, T: 64, layers: []int{0, 1},
		source: spec.Source{Name: "m", Container: "gguf", SHA256: strings.Repeat("0", 64)}}
	s.fitT.SHA256, s.evlT.SHA256 = s.source.SHA256, s.source.SHA256
	killed := &spec.LadderRecord{Rung: rung("RW2"), Status: spec.RungKill}
	only := &spec.LadderRecord{Rung: rung("RW1.2"), Status: spec.RungPass}
	for id, x := range map[string]struct {
		done []*spec.LadderRecord
		says string
	}{"RW3": {[]*spec.LadderRecord{killed}, "RW2 did not pass: KILL"}, "RW2": {[]*spec.LadderRecord{only}, "only fixed features passed"}} {
		for range 2 {
			if _, err := s.rung(context.Background(), rung(id), blocked(rung(id), x.done), x.done); err != nil {
				t.Fatal(err)
			}
		}
		r, err := readRecord(recordPath(o.Out, id, 64))
		if err != nil {
			t.Fatal(err)
		}
		if r.Status != spec.RungBlocked || !strings.Contains(r.Reason, x.says) {
			t.Errorf("%s is %s: %s", id, r.Status, r.Reason)
		}
	}
}

// TestBadOptions: what cannot be is said in a sentence, before anything is measured.
func TestBadOptions(t *testing.T) {
	ck := tiny.Open(t, "llama", tiny.Options{Seed: 3, Context: 4096})
	alone := tiny.Open(t, "llama", tiny.Options{Seed: 3, Layers: 1})
	for says, change := range map[string]func(o *Options){
		"Ctx 32":        func(o *Options) { o.Ctx = []int{64, 32} },
		"needs 4096":    func(o *Options) { o.Ctx = []int{4096} },
		"own context":   func(o *Options) { o.Ctx = []int{8192} },
		"Until \"RW9":   func(o *Options) { o.Until = "RW9" },
		"Layers \"0,2":  func(o *Options) { o.Layers = "0,2" },
		"at least 2 la": func(o *Options) { o.Layers = "1" },
		"Queries 0":     func(o *Options) { o.Queries = 0 },
		"FitChunks -1":  func(o *Options) { o.FitWindows = -1 },
		"on another":    func(o *Options) { o.Eval = o.Fit },
	} {
		o := small()
		change(&o)
		_, err := Run(context.Background(), ck, o)
		var use *option.Error
		if !errors.As(err, &use) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
	if _, err := Run(context.Background(), alone, small()); err == nil || !strings.Contains(err.Error(), "1 layer") {
		t.Errorf("a model of one layer: %v", err)
	}
	if _, err := Read(t.TempDir()); err == nil || !strings.Contains(err.Error(), "no rungs") {
		t.Errorf("an empty folder: %v", err)
	}
}
