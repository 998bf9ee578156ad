package convert

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// small is a conversion of everything there is, in a second.
func small(src, out string) Options {
	return Options{
		Source: src, Out: out, Formats: []checkpoint.Container{checkpoint.GGUF, checkpoint.Safetensors}, OutType: "f16",
		Code: "frame", Bits: 1, Alloc: "uniform", Balance: true,
		Policy:      kvcache.Policy{Anchor: 16, Sink: 2},
		Calibration: ppl.Text{Name: "calibration", Data: texts.Calibration}, CalibrationTokens: 96,
		Evaluation: ppl.Text{Name: "evaluation", Data: texts.Evaluation}, Ctx: 48, Chunks: 1, Seed: 1, Threads: 2,
		Tool: "test", Command: []string{"phaseconv"},
		Report: true,
	}
}

// TestUnitsAllot: units that allot signs by measurements find what one run finds,
// and keep it for the others; a merge without it is refused.
func TestUnitsAllot(t *testing.T) {
	dir := t.TempDir()
	at := func(s string) string { return filepath.Join(dir, s) }
	tiny.HF(t, at("src"), "qwen3", tiny.Options{Seed: 1, Layers: 3, HeadDim: 32})
	allotted := func(out string) Options {
		o := small(at("src"), at(out))
		o.Bits, o.Alloc = 1.3, "sensitivity"
		return o
	}
	res, err := Convert(context.Background(), allotted("one/out"))
	if err != nil {
		t.Fatal(err)
	}
	c := res.Manifest.Code
	heads := res.Manifest.Model.Layers * res.Manifest.Model.KVHeads
	want := math.Round(1.3*float64(32*heads)/8) * 8
	sum := 0.0
	for _, l := range res.Manifest.Layers {
		sum += l.Bits * 32
	}
	if sum != want || c.Bits != want/float64(32*heads) || c.Alloc != "sensitivity" {
		t.Errorf("%g signs over all heads, want %g; the manifest has %+v", sum, want, c)
	}
	o := allotted("two/out")
	o.Work = WorkDir(o.Out)
	for i := 3; i >= 1; i-- {
		if _, err := RunUnit(context.Background(), o, i, 3); err != nil {
			t.Fatal(err)
		}
	}
	signs := filepath.Join(o.Work, "allot.json")
	kept, err := os.ReadFile(signs)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(signs); err != nil {
		t.Fatal(err)
	}
	o.Merge = true
	if _, err := Convert(context.Background(), o); err == nil || !strings.Contains(err.Error(), "allotment") {
		t.Errorf("a merge without the allotment: %v", err)
	}
	if err := os.WriteFile(signs, kept, 0o666); err != nil {
		t.Fatal(err)
	}
	other := o
	other.Alloc = "angle"
	if _, err := Convert(context.Background(), other); err == nil ||
		!strings.Contains(err.Error(), "alloc is sensitivity there and angle here") {
		t.Errorf("a merge of another allotment: %v", err)
	}
	converted(t, o)
	sameTrees(t, at("one/out"), at("two/out"))
	if got := left(t, at("two")); !reflect.DeepEqual(got, []string{"out"}) {
		t.Errorf("beside the artifact: %v", got)
	}
}

// TestKeysPlan: what is planned for keys is what they take, and what no code can
// have is refused.
func TestKeysPlan(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	tiny.HF(t, src, "llama", tiny.Options{Seed: 1, HeadDim: 64})
	o := small(src, filepath.Join(dir, "out"))
	o.Policy.Exceptions, o.CalibrationTokens = 5, 144
	for _, bits := range []float64{0.5, 1, 2} {
		o.Bits = bits
		p, err := Plans(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		o.Out += "x"
		res, err := Convert(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		if k := p[0].Keys; k.Bytes != res.Verify.Bytes.KCode || k.Bits != bits || k.Bits != res.Manifest.Code.Bits ||
			res.Manifest.Code.Exceptions != 5 {
			t.Errorf("planned %+v, made %d bytes, %+v", k, res.Verify.Bytes.KCode, res.Manifest.Code)
		}
	}
	for _, x := range []struct {
		says string
		edit func(o *Options)
	}{
		{"Alloc", func(o *Options) { o.Alloc = "fair" }},
		{"Bits", func(o *Options) { o.Bits = 0.01 }},
		{"Bits", func(o *Options) { o.Bits = 9 }},
		{"only frame", func(o *Options) { o.Code, o.Bits = "learned", 2 }},
		{"only frame", func(o *Options) { o.Code, o.Bits, o.Alloc = "learned", 1, "angle" }},
		{"Exceptions", func(o *Options) { o.Policy.Exceptions = 33 }},
		{"Exceptions", func(o *Options) { o.Policy.Exceptions = -1 }},
	} {
		bad := o
		x.edit(&bad)
		var u *option.Error
		if _, err := Plans(t.Context(), bad); !errors.As(err, &u) || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v", x.says, err)
		}
	}
}

func converted(t *testing.T, o Options) *Result {
	t.Helper()
	res, err := Convert(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// byUnits converts by three units, the last one first, and merges them.
func byUnits(t *testing.T, o Options) {
	t.Helper()
	o.Work = WorkDir(o.Out)
	for i := 3; i >= 1; i-- {
		if _, err := RunUnit(context.Background(), o, i, 3); err != nil {
			t.Fatal(err)
		}
	}
	o.Merge = true
	converted(t, o)
}

// sameTrees compares two folders, names and bytes.
func sameTrees(t *testing.T, a, b string) {
	t.Helper()
	x, y := left(t, a), left(t, b)
	if !reflect.DeepEqual(x, y) {
		t.Fatalf("%s has %v\n%s has %v", a, x, b, y)
	}
	for _, n := range x {
		u, err1 := os.ReadFile(filepath.Join(a, n))
		v, err2 := os.ReadFile(filepath.Join(b, n))
		if err1 != nil || err2 != nil || string(u) != string(v) {
			t.Errorf("%s differs (%v, %v)", n, err1, err2)
		}
	}
}

// TestUnitsMerge: units in any order, by several processes' worth of calls, give
// after the merge what one run gives; so does a run that finds some layers.
func TestUnitsMerge(t *testing.T) {
	dir := t.TempDir()
	at := func(s string) string { return filepath.Join(dir, s) }
	tiny.HF(t, at("src"), "qwen2", tiny.Options{Seed: 1, Layers: 3, DType: "BF16"})
	converted(t, small(at("src"), at("one/out")))

	o := small(at("src"), at("two/out"))
	o.Work, o.Merge = WorkDir(o.Out), true
	if _, err := Convert(context.Background(), o); err == nil || !strings.Contains(err.Error(), "3 of 3 layers") {
		t.Fatalf("a merge of nothing: %v", err)
	}
	if _, err := os.Stat(at("two")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failed run left its parent: %v", err)
	}
	for _, u := range []struct {
		i      int
		layers []int
	}{{4, []int{2}}, {1, nil}, {3, []int{1}}, {2, []int{0}}} {
		r, err := RunUnit(context.Background(), o, u.i, 4)
		if err != nil {
			t.Fatal(err)
		}
		var got []int
		for _, l := range r.Units[0].Layers {
			if got = append(got, l.Layer); l.There {
				t.Errorf("unit %d: layer %d was there", u.i, l.Layer)
			}
		}
		if !reflect.DeepEqual(got, u.layers) {
			t.Errorf("unit %d of 4 fitted layers %v, want %v", u.i, got, u.layers)
		}
	}
	if r, err := RunUnit(context.Background(), o, 1, 1); err != nil || !r.Units[0].Layers[2].There {
		t.Errorf("all layers again: %+v, %v", r, err)
	}
	p, err := PlanUnits(o, 2)
	if err != nil || len(p.Units) != 2 || len(p.Units[0].Layers) != 1 || len(p.Units[1].Layers) != 2 ||
		!p.Units[1].Layers[1].There {
		t.Errorf("plan %+v, %v", p, err)
	}
	other := o
	other.Seed++
	if _, err := Convert(context.Background(), other); err == nil ||
		!strings.Contains(err.Error(), "seed is 1 there and 2 here") {
		t.Errorf("merged with another seed: %v", err)
	}
	converted(t, o)
	sameTrees(t, at("one/out"), at("two/out"))
	if got := left(t, at("two")); !reflect.DeepEqual(got, []string{"out"}) {
		t.Errorf("beside the artifact: %v", got)
	}

	// A folder of one's own stays; a damaged layer is fitted again, and said so.
	o = small(at("src"), at("three/out"))
	o.Work, o.KeepWork = at("work"), true
	for i := 1; i <= 2; i++ {
		if _, err := RunUnit(context.Background(), o, i, 3); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(o.Work, "layer-0000.safetensors")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	var notices []string
	o.Notice = func(text string) { notices = append(notices, text) }
	converted(t, o)
	sameTrees(t, at("one/out"), at("three/out"))
	// A note on what the report leaves out may follow.
	if len(notices) == 0 || !strings.Contains(notices[0], "layer-0000.safetensors") ||
		!strings.Contains(notices[0], "damaged") {
		t.Errorf("notices %q", notices)
	}
	if got := left(t, o.Work); len(got) != 3 {
		t.Errorf("work folder: %v", got)
	}
}

// TestSourceChangesUnderUnit: what was fitted to a source that changed meanwhile
// is not kept under its digest.
func TestSourceChangesUnderUnit(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src.gguf")
	tiny.GGUF(t, src, "llama", tiny.Options{Seed: 1, Layers: 3})
	o := small(src, filepath.Join(dir, "out"))
	o.Formats, o.Work = o.Formats[:1], filepath.Join(dir, "work")
	changed := false
	o.Progress = func(step string, done, total int) {
		if step == "calibrating" && !changed && done > total/3 { // the second layer's first code
			changed = true
			b, err := os.ReadFile(src)
			if err == nil {
				b[len(b)-1] ^= 1
				err = os.WriteFile(src, append(b, 0), 0o666)
			}
			if err != nil {
				t.Error(err)
			}
		}
	}
	_, err := RunUnit(context.Background(), o, 1, 1)
	if err == nil || !strings.Contains(err.Error(), "src.gguf") || !strings.Contains(err.Error(), "changed") {
		t.Errorf("error %v", err)
	}
	if got := left(t, o.Work); !reflect.DeepEqual(got, []string{"layer-0000.safetensors"}) {
		t.Errorf("kept %v; only layer 0 was fitted before the change", got)
	}
}

func TestUnitLayers(t *testing.T) {
	for layers := 1; layers < 40; layers++ {
		for n := 1; n < 50; n++ {
			next := 0
			for i := 1; i <= n; i++ {
				first, end := unitLayers(i, n, layers)
				if first != next || end < first || end-first > layers/n+1 {
					t.Fatalf("%d layers, unit %d of %d: [%d, %d) after %d", layers, i, n, first, end, next)
				}
				next = end
			}
			if next != layers {
				t.Fatalf("%d layers in %d units: %d", layers, n, next)
			}
		}
	}
	for _, x := range [][2]int{{0, 0}, {-1, 3}, {4, 3}, {1, 1 << 20}} {
		var use *option.Error
		if err := CheckUnits(x[0], x[1]); !errors.As(err, &use) {
			t.Errorf("unit %d of %d: %v", x[0], x[1], err)
		}
	}
}
