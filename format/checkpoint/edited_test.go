package checkpoint_test

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
)

// TestViewEdits: a mix, then scales, turns and shifts in any order act as their
// matrices do, one after the other, whatever rows are read.
func TestViewEdits(t *testing.T) {
	dir := t.TempDir()
	tiny.GGUF(t, filepath.Join(dir, "m.gguf"), "qwen2", tiny.Options{Layers: 1})
	c := open(t, filepath.Join(dir, "m.gguf"))
	r := rand.New(rand.NewPCG(1, 9))
	draw := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(0.5 + r.Float64())
		}
		return x
	}
	for _, name := range []string{"blk.0.attn_k.weight", "blk.0.attn_k.bias", "added"} {
		v := checkpoint.NewEdited(c, checkpoint.Edits{})
		x, ok := c.Find(name)
		if !ok {
			x = &checkpoint.Tensor{Name: name, Shape: []int{32}, Type: "F32"}
			v.Added = map[string]*checkpoint.Tensor{name: x}
			if _, ok := v.Find(name); !ok {
				t.Fatal("an added tensor is not found")
			}
		}
		n := x.Shape[0]
		per := x.Elements() / n
		want := make([]float64, x.Elements())
		if ok {
			all, err := c.ReadAll(x)
			if err != nil {
				t.Fatal(err)
			}
			for i, a := range all {
				want[i] = float64(a)
			}
		}
		partner := make([]int, n)
		for i := range partner {
			partner[i] = i ^ 4
		}
		s := draw(n)
		v.Edits.Shift(name, "G7", s)
		for i := range want {
			want[i] += float64(s[i/per])
		}
		var mixes []checkpoint.RowMix
		old := slices.Clone(want)
		for _, rows := range [][]int{{0, 1, 5, 9}, {20, 18, 4, 21}} {
			m := checkpoint.RowMix{Rows: rows, Matrix: draw(len(rows) * len(rows))}
			for i, a := range rows {
				for k := range per {
					var sum float64
					for j, b := range rows {
						sum += float64(m.Matrix[i*len(rows)+j]) * old[b*per+k]
					}
					want[a*per+k] = sum
				}
			}
			mixes = append(mixes, m)
		}
		if err := v.Edits.Mix(name, "G8", mixes); err != nil {
			t.Fatal(err)
		}
		if err := v.Edits.Mix(name, "G8", mixes); err == nil {
			t.Errorf("%s: mixed twice", name)
		}
		for range 8 {
			switch r.IntN(3) {
			case 0:
				s := draw(n)
				v.Edits.Scale(name, "G3", s)
				for i := range want {
					want[i] *= float64(s[i/per])
				}
			case 1:
				own, cross := draw(n), draw(n)
				v.Edits.Turn(name, "G3", partner, own, cross)
				old := slices.Clone(want)
				for i := range want {
					want[i] = float64(own[i/per])*old[i] + float64(cross[i/per])*old[partner[i/per]*per+i%per]
				}
			case 2:
				s := draw(n)
				v.Edits.Shift(name, "G7", s)
				for i := range want {
					want[i] += float64(s[i/per])
				}
			}
		}
		for row := range x.Rows() {
			got := make([]float32, x.Cols())
			if err := v.ReadRows(x, row, 1, got); err != nil {
				t.Fatal(err)
			}
			for k, g := range got {
				w := want[row*x.Cols()+k]
				if math.Abs(float64(g)-w) > 1e-5*math.Max(1, math.Abs(w)) {
					t.Fatalf("%s: row %d, column %d is %g, want %g", name, row, k, g, w)
				}
			}
		}
		if err := v.ReadRows(x, x.Rows(), 1, make([]float32, x.Cols())); err == nil {
			t.Errorf("%s: a row behind the end was read", name)
		}
	}
	// Columns, in a matrix whose rows are scaled too.
	const name = "blk.0.attn_output.weight"
	x, _ := c.Find(name)
	v := checkpoint.NewEdited(c, checkpoint.Edits{})
	rows, mix := draw(x.Shape[0]), draw(9)
	v.Edits.Scale(name, "G1", rows)
	if err := v.Edits.MixColumns(name, "G2", []checkpoint.RowMix{{Rows: []int{4, 1, 7}, Matrix: mix}}); err != nil {
		t.Fatal(err)
	}
	if err := v.Edits.MixColumns(name, "G2", nil); err == nil {
		t.Error("columns were mixed twice")
	}
	got, err := c.ReadAll(x)
	if err != nil {
		t.Fatal(err)
	}
	edited := make([]float32, len(got))
	if err := v.ReadRows(x, 0, x.Rows(), edited); err != nil {
		t.Fatal(err)
	}
	for r := range x.Rows() {
		row := got[r*x.Cols() : (r+1)*x.Cols()]
		for k := range row {
			want := float64(row[k])
			for i, c := range []int{4, 1, 7} {
				if c == k {
					want = float64(mix[3*i])*float64(row[4]) + float64(mix[3*i+1])*float64(row[1]) +
						float64(mix[3*i+2])*float64(row[7])
				}
			}
			want *= float64(rows[r])
			if e := float64(edited[r*x.Cols()+k]); math.Abs(want-e) > 1e-6 {
				t.Fatalf("row %d, column %d is %g, want %g", r, k, e, want)
			}
		}
	}
}

// TestViewRefuses: an edit that does not fit its tensor is an error, not a panic.
func TestViewRefuses(t *testing.T) {
	dir := t.TempDir()
	tiny.GGUF(t, filepath.Join(dir, "m.gguf"), "llama", tiny.Options{Layers: 1})
	c := open(t, filepath.Join(dir, "m.gguf"))
	const name = "blk.0.attn_k.weight"
	x, _ := c.Find(name)
	n := x.Shape[0]
	full := make([]float32, n)
	self := make([]int, n)
	far := make([]int, n)
	for i := range self {
		self[i], far[i] = i, n
	}
	for what, e := range map[string]*checkpoint.Edit{
		"scale":          {Scale: full[1:]},
		"shift":          {Shift: full[1:]},
		"distant column": {ColMix: []checkpoint.RowMix{{Rows: []int{x.Cols()}, Matrix: full[:1]}}},
		"column twice": {ColMix: []checkpoint.RowMix{{Rows: []int{1}, Matrix: full[:1]},
			{Rows: []int{1}, Matrix: full[:1]}}},
		"column matrix":   {ColMix: []checkpoint.RowMix{{Rows: []int{1, 2}, Matrix: full[:3]}}},
		"lonely":          {Cross: full, Scale: full},
		"unscaled":        {Cross: full, Partner: self},
		"distant partner": {Cross: full, Scale: full, Partner: far},
	} {
		v := checkpoint.NewEdited(c, checkpoint.Edits{name: e})
		if err := v.ReadRows(x, 0, 1, make([]float32, x.Cols())); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

// TestNothingUnedited: an edited checkpoint offers no method and no field that reads
// weights past the edits. Whoever adds one decides here that edits reach it.
func TestNothingUnedited(t *testing.T) {
	typ := reflect.TypeFor[*checkpoint.Edited]()
	var have []string
	for i := range typ.NumMethod() {
		have = append(have, typ.Method(i).Name)
	}
	for i := range typ.Elem().NumField() {
		f := typ.Elem().Field(i)
		if f.Anonymous {
			t.Errorf("%s is embedded: all that it can read is readable without edits", f.Name)
		}
		if f.IsExported() {
			have = append(have, f.Name)
		}
	}
	slices.Sort(have)
	if want := []string{"Added", "Changed", "Clone", "Config", "Edits", "Find", "ReadRows", "Round", "Stream", "WithoutStream"}; !slices.Equal(have, want) {
		t.Errorf("reachable are %v, want %v", have, want)
	}
}
