package fitcache

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/rotations/fit"

	"github.com/phaseconv/phaseconv/convert/calibrate"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// fitOptions fit a small model with everything that a layer can have.
func fitOptions() calibrate.Options {
	return calibrate.Options{Kinds: []codec.Kind{"cen", "frame", "learned"}, Bits: 1.5,
		Policy: kvcache.Policy{Anchor: 8, Sink: 2}, Balance: true, Seed: 3, Threads: 2}
}

func fitAll(t *testing.T, c *checkpoint.Checkpoint, o calibrate.Options) *calibrate.Result {
	t.Helper()
	r, err := calibrate.Run(context.Background(), refmodel.New(c.Config, c, 2), tiny.Windows(c.Config, 2, 24), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func work(t *testing.T, c *checkpoint.Checkpoint, o calibrate.Options) *Cache {
	return &Cache{
		Dir: filepath.Join(t.TempDir(), "a [b]*", "work"), Inputs: []Input{{"program", "test"}, {"seed", "3"}},
		Config: c.Config, Balance: o.Balance, Kinds: o.Kinds,
		Notice: func(text string) { t.Errorf("notice: %s", text) },
	}
}

// same compares exactly, NaN included. Codes are compared by their exported parts.
func same(a, b *calibrate.Layer) bool {
	x, y := arrays(a), arrays(b)
	if len(x) != len(y) || (a.PairScale == nil) != (b.PairScale == nil) || a.PairScale != nil &&
		a.PairScale.PerLayer != b.PairScale.PerLayer {
		return false
	}
	for i := range x {
		if x[i].name != y[i].name || !reflect.DeepEqual(x[i].shape, y[i].shape) || !bytes.Equal(x[i].data, y[i].data) {
			return false
		}
	}
	return true
}

// TestStoreKeepsAll: a layer that is read back has every number of the one saved.
// The counts of fields are there so that nobody adds one that is not kept.
func TestStoreKeepsAll(t *testing.T) {
	for what, n := range map[reflect.Type]int{
		reflect.TypeFor[calibrate.Layer](): 3, reflect.TypeFor[calibrate.Head](): 4,
		reflect.TypeFor[calibrate.Group]():     3,
		reflect.TypeFor[transform.PairScale](): 2,
		reflect.TypeFor[codec.Beta]():          4, reflect.TypeFor[fit.Point](): 2,
	} {
		if what.NumField() != n {
			t.Errorf("%v has %d fields, the store knows %d", what, what.NumField(), n)
		}
	}
	exported := 0
	for i := range reflect.TypeFor[codec.Code]().NumField() {
		if reflect.TypeFor[codec.Code]().Field(i).IsExported() {
			exported++
		}
	}
	if exported != 7 { // Kind, D, B, Mean, Decode, Encode, Gain
		t.Errorf("codec.Code has %d exported fields, the store knows 7", exported)
	}
	for _, fam := range []string{"llama", "qwen3"} { // a balance per head, and one per layer
		c := tiny.Open(t, fam, tiny.Options{Seed: 1})
		o := fitOptions()
		if fam == "qwen3" {
			o.Bits, o.Kinds = 1, []codec.Kind{"raw", "srht", "frame"}
		}
		r := fitAll(t, c, o)
		x := &r.Layers[1]
		// Numbers that text would spoil.
		x.Heads[0].Train[o.Kinds[0]] = codec.Beta{Cos1bit: math.Nextafter(0.8, 1), MomentRatio: math.NaN(), Energy: 1e-300,
			N: 7}
		w := work(t, c, o)
		if err := w.Save(t.Context(), 1, x); err != nil {
			t.Fatal(err)
		}
		y, err := w.Load(t.Context(), 1)
		if err != nil || y == nil || !same(x, y) {
			t.Fatalf("%s: %+v became %+v", fam, x, y)
		}
		if !math.IsNaN(y.Heads[0].Train[o.Kinds[0]].MomentRatio) || y.Heads[1].Tokens != x.Heads[1].Tokens ||
			len(y.Heads[0].Codes) != 3 {
			t.Errorf("%s: %+v", fam, y.Heads[0])
		}
		k := []float32{}
		for i := range c.Config.Layers[0].HeadDim {
			k = append(k, float32(i%5)-1.7)
		}
		a, b := x.Heads[0].Codes["frame"], y.Heads[0].Codes["frame"]
		wa, wb := make([]uint32, a.Words()), make([]uint32, b.Words())
		if a.EncodeKey(k, wa) != b.EncodeKey(k, wb) || !reflect.DeepEqual(wa, wb) {
			t.Errorf("%s: the code that was read back encodes differently", fam)
		}
		if _, err := w.Read(t.Context(), 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a layer that was not saved: %v", err)
		}
	}
}

// TestStoreKeepsGroups: a layer of joint codes comes back the same, and not as one of other groups.
func TestStoreKeepsGroups(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Seed: 1})
	y := c.Config.Layers[0]
	spans, err := codec.Spans(y.KVHeads, y.HeadDim, y.HeadDim, 2*y.HeadDim, true, true)
	if err != nil {
		t.Fatal(err)
	}
	signs := make([]int, len(spans))
	for i := range signs {
		signs[i] = 16
	}
	o := fitOptions()
	o.Kinds, o.Joint = nil, &calibrate.Joint{}
	for range c.Config.Layers {
		o.Joint.Parts, o.Joint.Signs = append(o.Joint.Parts, spans), append(o.Joint.Signs, signs)
	}
	x := &fitAll(t, c, o).Layers[1]
	w := work(t, c, o)
	w.Groups = o.Joint.Parts
	if err := w.Save(t.Context(), 1, x); err != nil {
		t.Fatal(err)
	}
	got, err := w.Load(t.Context(), 1)
	if err != nil || got == nil || !same(x, got) || len(got.Groups) != len(spans) {
		t.Fatalf("%+v became %+v, %v", x, got, err)
	}
	row := make([]float32, got.Groups[0].Code.D())
	for i := range row {
		row[i] = float32(i%7) - 2.9
	}
	a, b := x.Groups[0].Code, got.Groups[0].Code
	wa, wb := make([]uint32, a.Words()), make([]uint32, b.Words())
	if a.Code.EncodeKey(row, wa) != b.Code.EncodeKey(row, wb) || !reflect.DeepEqual(wa, wb) {
		t.Error("the code that was read back encodes differently")
	}
	w.Groups = [][][]codec.Part{nil, {{{Head: 0}}, {{Head: 0, Value: true}}}}
	if _, err := w.Read(t.Context(), 1); err == nil {
		t.Error("the layer is taken for one of other groups")
	}
}

// TestStoreRefuses: every changed bit and every other input is noticed.
func TestStoreRefuses(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Seed: 1})
	o := fitOptions()
	r := fitAll(t, c, o)
	w := work(t, c, o)
	if err := w.Save(t.Context(), 0, &r.Layers[0]); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(w.Path(0))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(good); i += 1 + len(good)/400 {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		if err := os.WriteFile(w.Path(0), bad, 0o666); err != nil {
			t.Fatal(err)
		}
		if x, err := w.Read(t.Context(), 0); err == nil || x != nil {
			t.Errorf("bit %d of byte %d turned (%.30q): %v", i%8, i, bad[max(0, i-20):], err)
		}
	}
	for _, n := range []int{0, 7, len(good) / 2, len(good) - 1} {
		os.WriteFile(w.Path(0), good[:n], 0o666)
		if _, err := w.Read(t.Context(), 0); err == nil {
			t.Errorf("the first %d bytes were read", n)
		}
	}
	os.WriteFile(w.Path(0), good, 0o666)
	os.WriteFile(w.Path(1), good, 0o666)
	if _, err := w.Read(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "layer") {
		t.Errorf("the file of another layer: %v", err)
	}
	other := func(edit func(y *family.Layer)) func(w *Cache) {
		return func(w *Cache) {
			w.Config = c.Config.Clone()
			edit(&w.Config.Layers[0])
		}
	}
	for _, x := range []struct {
		name string
		edit func(w *Cache)
		says string
	}{
		{"seed", func(w *Cache) { w.Inputs = []Input{{"program", "test"}, {"seed", "4"}} }, "seed is 3 there and 4 here"},
		{"more inputs", func(w *Cache) { w.Inputs = append(w.Inputs[:2:2], Input{"x", "y"}) }, "another version"},
		{"fewer inputs", func(w *Cache) { w.Inputs = w.Inputs[:1] }, "another version"},
		{"heads", other(func(y *family.Layer) { y.KVHeads++ }), "balance.2"},
		{"fewer heads", other(func(y *family.Layer) { y.KVHeads-- }), "not one of"},
		{"head_dim", other(func(y *family.Layer) { y.HeadDim *= 2 }), "balance.0"},
		{"no balance", func(w *Cache) { w.Balance = false }, "balance.0"},
		{"kinds", func(w *Cache) { w.Kinds = append(w.Kinds[:3:3], "srht") }, "srht"},
	} {
		v := *w
		x.edit(&v)
		if _, err := v.Read(t.Context(), 0); err == nil || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v, want %q", x.name, err, x.says)
		}
		told := ""
		v.Notice = func(text string) { told = text }
		if x, err := v.Load(t.Context(), 0); err != nil || x != nil {
			t.Errorf("loaded %v, %v", x, err)
		}
		if !strings.Contains(told, x.says) {
			t.Errorf("%s: told %q", x.name, told)
		}
	}
	w.Check = func() error { return errors.New("the source changed") }
	if err := w.Save(t.Context(), 1, &r.Layers[1]); err == nil || err.Error() != "the source changed" {
		t.Errorf("saved for a source that changed: %v", err)
	}
	if err := w.Remove(2); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(w.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

// TestUnits: layers fitted one by one, in any order, are those of one run, and a
// run that finds some of them fits the others to the same bits.
func TestUnits(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Seed: 1, Layers: 3})
	want := fitAll(t, c, fitOptions())
	o := fitOptions()
	w := work(t, c, o)
	o.Store = w
	for _, l := range []int{2, 0} {
		one := o
		steps, last := 0, 0
		one.Only, one.Progress = func(x int) bool { return x == l }, func(done, total int) {
			// A step for each layer passed, and for each code fitted.
			each := 1 + len(one.Kinds)*c.Config.Layers[0].KVHeads
			if steps++; total != (l+1)*each || done > total || done < last {
				t.Errorf("progress %d of %d for layer %d, after %d", done, total, l, last)
			}
			last = done
		}
		r := fitAll(t, c, one)
		for x := range r.Layers {
			if (r.Layers[x].Heads != nil) != (x == l) {
				t.Errorf("only layer %d was to be fitted, layer %d has %d heads", l, x, len(r.Layers[x].Heads))
			}
		}
		if each := 1 + len(one.Kinds)*c.Config.Layers[0].KVHeads; last != (l+1)*each || steps < each {
			t.Errorf("layer %d: %d steps of progress, up to %d", l, steps, last)
		}
	}
	// Loaded, not fitted again: a mark in the file survives.
	x, err := w.Read(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	x.Heads[0].Tokens = 12345
	if err := w.Save(t.Context(), 2, x); err != nil {
		t.Fatal(err)
	}
	got := fitAll(t, c, o)
	if got.Layers[2].Heads[0].Tokens != 12345 {
		t.Error("layer 2 was fitted again")
	}
	got.Layers[2].Heads[0].Tokens = want.Layers[2].Heads[0].Tokens
	for l := range want.Layers {
		if !same(&want.Layers[l], &got.Layers[l]) {
			t.Errorf("layer %d differs", l)
		}
	}
	// All there: nothing is left to run.
	got = fitAll(t, c, o)
	if len(got.Layers) != 3 || got.Layers[1].Heads == nil {
		t.Errorf("%+v", got)
	}
}

// counted is a context that ends when it has been asked so many times.
type counted struct {
	context.Context
	asked, limit int
}

func (c *counted) Err() error {
	if c.asked++; c.limit > 0 && c.asked > c.limit {
		return context.Canceled
	}
	return nil
}

// TestCancelFit: a fit of a single head asks its context at every step, and ends
// with the first that says no.
func TestCancelFit(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Seed: 1, Layers: 1, KVHeads: 1, Heads: 1, HeadDim: 64})
	o := fitOptions()
	o.Kinds, o.Threads = []codec.Kind{"srht", "learned", "frame"}, 1
	run := func(limit int) (int, error) {
		ctx := &counted{Context: context.Background(), limit: limit}
		_, err := calibrate.Run(ctx, refmodel.New(c.Config, c, 1), tiny.Windows(c.Config, 2, 64), o)
		return ctx.asked, err
	}
	whole, err := run(0)
	if err != nil {
		t.Fatal(err)
	}
	// 16 signs of srht, some steps from each of two starts of learned, 8 of frame.
	if whole < 16+2*5+8 {
		t.Errorf("asked %d times", whole)
	}
	for limit := 1; limit < whole; limit += 1 + whole/8 {
		// Loops around the one that notices, and the look for the cause, ask too.
		if n, err := run(limit); !errors.Is(err, context.Canceled) || n <= limit || n > limit+8 {
			t.Errorf("limit %d: asked %d times, %v", limit, n, err)
		}
	}
}

// TestApart: of long values the note shows where they differ.
func TestApart(t *testing.T) {
	long := strings.Repeat("k0 v0 ", 40)
	a, b := apart(long+"x"+long, long+"y"+long)
	if a == b || !strings.HasPrefix(a, "...") || !strings.Contains(a, "x") || !strings.Contains(b, "y") || len(a) > 90 {
		t.Errorf("%q, %q", a, b)
	}
	if a, b := apart("3", "4"); a != "3" || b != "4" {
		t.Errorf("%q, %q", a, b)
	}
	if a, b := apart(long, long[:100]); a == b {
		t.Errorf("%q, %q", a, b)
	}
}
