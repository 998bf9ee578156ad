package sidecar

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
)

func testFold() *Fold {
	return &Fold{
		SourceSHA256: strings.Repeat("0a", 32),
		Edits: checkpoint.Edits{
			"blk.0.attn_k.weight": {Scale: []float32{1, math.Nextafter32(1, 2), 1e-30, 4}, Partner: []int{2, 3, 0, 1},
				Cross: []float32{0, -1, 0.5, 0.25}, By: []string{"G3"}},
			"blk.0.attn_k.bias": {Shift: []float32{1, 2, 3, -4}, By: []string{"G7", "G3"}},
			"blk.1.attn_k.weight": {By: []string{"G8"}, Mix: []checkpoint.RowMix{
				{Rows: []int{3, 1}, Matrix: []float32{1, 2, 3, 4}}, {Rows: []int{0, 7}, Matrix: []float32{5, 6, 7, -8}}}},
			"blk.1.ffn_up.weight": {By: []string{"G4", "G10"},
				Inner:     &checkpoint.Inner{Order: []int{1, 0, 2}, Factor: []float32{2, 3, 4}},
				InnerCols: &checkpoint.Inner{Factor: []float32{5, 6}}},
			"blk.1.attn_output.weight": {By: []string{"G2"}, ColMix: []checkpoint.RowMix{{Rows: []int{2}, Matrix: []float32{9}},
				{Rows: []int{0}, Matrix: []float32{-7}}}},
		},
		Added: map[string]*checkpoint.Tensor{"blk.0.attn_k.bias": {Name: "blk.0.attn_k.bias", Layer: 0, Shape: []int{4},
			Type: "F32"}},
	}
}

func writeFold(t testing.TB, f *Fold) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), spec.FoldName)
	if err := f.Write(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestFoldFile: what is read is what was written, in every field of an edit.
func TestFoldFile(t *testing.T) {
	// The ids are no part, and each mix and each inner edit is two.
	if n := reflect.TypeFor[checkpoint.Edit]().NumField(); n-1+4 != len(foldParts) {
		t.Errorf("an edit has %d fields, the file knows %d parts", n, len(foldParts))
	}
	rotated := testFold()
	rotated.Residual = &transform.ResidualRotation{D: 4, P: 2, Sign: []float32{1, -1, -1, 1},
		Small: []float32{0, 1, -1, 0}}
	for _, f := range []*Fold{testFold(), rotated, {SourceSHA256: strings.Repeat("0b", 32), Edits: checkpoint.Edits{},
		Added: map[string]*checkpoint.Tensor{}}} {
		got, err := ReadFold(t.Context(), writeFold(t, f))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, f) {
			t.Errorf("%+v became %+v", f, got)
		}
	}
	a, err := os.ReadFile(writeFold(t, testFold()))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(writeFold(t, testFold()))
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("the same fold has other bytes (%v)", err)
	}
}

func TestFoldRefuses(t *testing.T) {
	for _, x := range []struct {
		name string
		edit func(f *Fold)
		says string
	}{
		{"NaN", func(f *Fold) { f.Edits["blk.0.attn_k.weight"].Scale[1] = float32(math.NaN()) },
			"blk.0.attn_k.weight.scale: number 1"},
		{"infinite", func(f *Fold) { f.Edits["blk.1.attn_output.weight"].ColMix[1].Matrix[0] = float32(math.Inf(1)) },
			"colmix: number 1"},
		{"no square", func(f *Fold) { f.Edits["blk.1.attn_output.weight"].ColMix[1].Matrix = []float32{1, 2} },
			"no list of square matrices"},
		{"rows alone", func(f *Fold) {
			f.Edits["blk.1.attn_k.weight"].Mix[0].Matrix, f.Edits["blk.1.attn_k.weight"].Mix[1].Matrix = nil, nil
		}, "mix has 4 indices and 0 numbers"},
		{"partner outside", func(f *Fold) { f.Edits["blk.0.attn_k.weight"].Partner[0] = 4 }, "partner: number 0 is 4"},
		{"partner negative", func(f *Fold) { f.Edits["blk.0.attn_k.weight"].Partner[1] = -1 }, "partner: number 1 is -1"},
		{"partners that do not meet", func(f *Fold) { f.Edits["blk.0.attn_k.weight"].Partner = []int{1, 2, 3, 0} },
			"no partner"},
		{"cross alone", func(f *Fold) { f.Edits["blk.0.attn_k.weight"].Partner = nil }, "without the other"},
		{"lengths", func(f *Fold) { f.Edits["blk.0.attn_k.weight"].Scale = []float32{1} }, "numbers, the other parts"},
		{"nothing done", func(f *Fold) { f.Edits["x"] = &checkpoint.Edit{By: []string{"G3"}} }, "nothing is done"},
		{"no identity", func(f *Fold) { f.Edits["blk.0.attn_k.bias"].By = nil }, "by no identity"},
		{"digest", func(f *Fold) { f.SourceSHA256 = "12" }, spec.KeySourceSHA256},
	} {
		f := testFold()
		x.edit(f)
		if _, err := ReadFold(t.Context(), writeFold(t, f)); err == nil || !strings.Contains(err.Error(), x.says) ||
			!strings.Contains(err.Error(), spec.FoldName) {
			t.Errorf("%s: %v, want %q", x.name, err, x.says)
		}
	}
	good := map[string]string{spec.KeyVersion: "1", spec.KeySourceSHA256: strings.Repeat("0a", 32), spec.FoldList: "[]"}
	for _, x := range []struct{ key, value, says string }{
		{spec.KeyVersion, "2", spec.KeyVersion},
		{spec.FoldList, "", spec.FoldList},
		{spec.FoldList, "[] []", spec.FoldList},
		{spec.FoldList, `[{"tensor": "a", "by": ["G3"], "more": 1}]`, spec.FoldList},
		{spec.FoldList, `[{"tensor": "a", "by": ["G3"], "added": -1}]`, "added"},
		{"phaseconv.new", "1", "phaseconv.new"},
	} {
		meta := map[string]string{}
		for k, v := range good {
			meta[k] = v
		}
		meta[x.key] = x.value
		path := filepath.Join(t.TempDir(), spec.FoldName)
		w, err := safetensors.Create(path, nil, meta)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadFold(t.Context(), path); err == nil || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s = %q: %v, want %q", x.key, x.value, err, x.says)
		}
	}
	f := testFold()
	f.Added["blk.7.attn_k.bias"] = f.Added["blk.0.attn_k.bias"]
	if err := f.Write(filepath.Join(t.TempDir(), "x")); err == nil {
		t.Error("an added tensor without an edit was written")
	}
}

// TestFoldView: every kind of edit, read back, gives the weights that it gave.
func TestFoldView(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.gguf")
	tiny.GGUF(t, path, "llama", tiny.Options{Seed: 1})
	c, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cfg := c.Config
	v := checkpoint.NewEdited(c, checkpoint.Edits{})
	for l := range cfg.Layers {
		var keys []transform.KeyEdit
		for h := range cfg.Layers[0].KVHeads {
			e := transform.KeyEdit{Pairs: &transform.PairRotation{Scale: make([]float32, cfg.Layers[0].HeadDim/2),
				Angle: make([]float64, cfg.Layers[0].HeadDim/2)},
				Shift: &transform.BiasShift{Delta: make([]float64, cfg.Layers[0].HeadDim)}}
			n := cfg.Layers[0].HeadDim
			e.Values = &transform.KeyTransform{Key: make([]float64, n*n), Query: make([]float64, n*n)}
			for i := range n {
				x := 1 + float64(i+h)/7
				e.Values.Key[i*n+(i+1)%n], e.Values.Query[i*n+(i+1)%n] = x, 1/x
				e.Shift.Delta[i] = float64(i-h) / 3
				e.Pairs.Scale[i/2], e.Pairs.Angle[i/2] = 1+float32(i)/5, float64(l+i)/9
			}
			keys = append(keys, e)
		}
		if err := transform.FoldKeys(v, l, keys); err != nil {
			t.Fatal(err)
		}
	}
	if len(v.Added) != len(cfg.Layers) {
		t.Fatalf("added tensors %v", v.Added)
	}
	f, err := ReadFold(t.Context(),
		writeFold(t, &Fold{SourceSHA256: strings.Repeat("0a", 32), Edits: v.Edits, Added: v.Added}))
	if err != nil {
		t.Fatal(err)
	}
	w, err := f.Apply(c)
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for _, name := range v.Edits.Names() {
		x, _ := v.Find(name)
		y, ok := w.Find(name)
		if !ok {
			t.Fatalf("%s is lost", name)
		}
		a, b, source := make([]float32, x.Elements()), make([]float32, x.Elements()), make([]float32, x.Elements())
		if err := v.ReadRows(x, 0, x.Rows(), a); err != nil {
			t.Fatal(err)
		}
		if err := w.ReadRows(y, 0, y.Rows(), b); err != nil {
			t.Fatal(err)
		}
		if s, own := c.Find(name); own {
			if err := c.ReadRows(s, 0, s.Rows(), source); err != nil {
				t.Fatal(err)
			}
		}
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%s differs", name)
		}
		if !reflect.DeepEqual(a, source) {
			changed++
		}
	}
	if changed != len(v.Edits) || changed < 4*len(cfg.Layers) {
		t.Errorf("%d of %d edits change something", changed, len(v.Edits))
	}
	delete(f.Added, v.Edits.Names()[0])
	f.Edits["blk.0.nothing"] = f.Edits[v.Edits.Names()[0]]
	if _, err := f.Apply(c); err == nil || !strings.Contains(err.Error(), "blk.0.") {
		t.Errorf("a tensor that is not there: %v", err)
	}
}

// TestCompare: equal codes are equal in any pair layout; each difference is named.
func TestCompare(t *testing.T) {
	near := func(p *float64, want float64) bool { return p != nil && math.Abs(*p-want) < 1e-6 }
	make1 := func(edit func(c []float32)) *Sidecar {
		mean, decode, encode := make([]float32, 8), make([]float32, 64), make([]float32, 64)
		for i := range 8 {
			mean[i] = 1
			decode[i*9], encode[i*9] = 2, 1
		}
		if edit != nil {
			edit(mean)
		}
		c, err := codec.New("frame", 8, 8, mean, decode, encode)
		if err != nil {
			t.Fatal(err)
		}
		return &Sidecar{Kind: "frame", HeadDim: 8, Codes: [][]*codec.Code{{c}}}
	}
	a := make1(nil)
	d, err := Compare(t.Context(), a, make1(nil), testFold(), testFold())
	if err != nil || !d.Equal {
		t.Errorf("equal: %+v, %v", d, err)
	}
	// |a - b| = 3, the larger of the two has length sqrt(7 + 16).
	f := testFold()
	f.Edits["blk.0.attn_k.bias"].Shift[3] = 0
	delete(f.Edits, "blk.1.attn_output.weight")
	b := make1(func(mean []float32) { mean[7] = 4 })
	b.Sink = 3
	d, err = Compare(t.Context(), a, b, testFold(), f)
	if err != nil || d.Equal || len(d.Keys) != 1 || d.Keys[0] != (spec.DiffKey{Key: spec.KeySink, A: "0", B: "3"}) {
		t.Fatalf("%+v, %v", d, err)
	}
	if len(d.Heads) != 1 || !near(d.Heads[0].Mean, 3/math.Sqrt(23)) || !near(d.Heads[0].Decode, 0) {
		t.Errorf("heads %+v", d.Heads)
	}
	if len(d.Fold) != 2 || d.Fold[0].Tensor != "blk.0.attn_k.bias" || !near(d.Fold[0].Distance, 4/math.Sqrt(30)) ||
		d.Fold[1].Distance != nil {
		t.Errorf("fold %+v", d.Fold)
	}
}

// FuzzReadFold: whatever the bytes, ReadFold returns, and what it accepts can be
// written and read again.
func FuzzReadFold(f *testing.F) {
	for _, x := range []*Fold{testFold(), {SourceSHA256: strings.Repeat("0b", 32), Edits: checkpoint.Edits{}}} {
		path := filepath.Join(f.TempDir(), "x")
		if err := x.Write(path); err != nil {
			f.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, "x.safetensors")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		x, err := ReadFold(t.Context(), path)
		if err != nil {
			return
		}
		again := filepath.Join(dir, "y.safetensors")
		if err := x.Write(again); err != nil {
			t.Fatal(err)
		}
		y, err := ReadFold(t.Context(), again)
		if err != nil || !reflect.DeepEqual(x, y) {
			t.Fatalf("%+v became %+v, %v", x, y, err)
		}
	})
}

// TestZeroBiases: a bias of zeros that a container needs beside that of keys is no part of a fold.
func TestZeroBiases(t *testing.T) {
	vector := func(name string) *checkpoint.Tensor {
		return &checkpoint.Tensor{Name: name, Shape: []int{4}, Type: "F32"}
	}
	v := checkpoint.NewEdited(nil, checkpoint.Edits{"blk.0.attn_k.bias": {Shift: make([]float32, 4), By: []string{"G7"}}})
	v.Added = map[string]*checkpoint.Tensor{"blk.0.attn_k.bias": vector("blk.0.attn_k.bias"),
		"blk.0.attn_q.bias": vector("blk.0.attn_q.bias")}
	f, err := ReadFold(t.Context(), writeFold(t, FoldOf(v, strings.Repeat("0a", 32))))
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Added) != 1 || len(v.Added) != 2 {
		t.Errorf("the fold adds %v, the view %v", f.Added, v.Added)
	}
}
