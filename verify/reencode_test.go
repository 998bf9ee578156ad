package verify

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/ppl"
)

// drawn are edits of a layer that cancel exactly: pairs scaled and turned at random, and an orthogonal matrix on
// values, of n heads of d numbers.
func drawn(r *rand.Rand, n, d int) []transform.KeyEdit {
	out := make([]transform.KeyEdit, n)
	for h := range out {
		p := &transform.PairRotation{Scale: make([]float32, d/2), Angle: make([]float64, d/2)}
		for i := range p.Scale {
			p.Scale[i], p.Angle[i] = float32(math.Exp2(r.Float64()*2-1)), r.Float64()*6
		}
		v, size := make([]float64, d), 0.0 // a mirror
		for i := range v {
			v[i] = r.NormFloat64()
			size += v[i] * v[i]
		}
		m := make([]float64, d*d)
		for i := range d {
			m[i*d+i] = 1
			for j := range d {
				m[i*d+j] -= 2 * v[i] * v[j] / size
			}
		}
		out[h] = transform.KeyEdit{Pairs: p, Values: &transform.KeyTransform{Key: m, Query: m}}
	}
	return out
}

// soft makes predictions smooth: those of random heads are so sure that few tokens carry all of a divergence.
func soft(name string, values []float32) {
	if name == "lm_head.weight" {
		for i := range values {
			values[i] /= 8
		}
	}
}

// TestRequantised: the proof of function of a file whose edited matrices keep quantised types. What edits that
// cancel cost is what the floor costs, for they are stored as coarsely; keys that are larger by a little, which no
// query undoes, are another function.
func TestRequantised(t *testing.T) {
	applied := []spec.Identity{{ID: transform.IDPairAngle, Applied: true, Exact: true},
		{ID: transform.IDValueTransform, Applied: true, Exact: true}}
	var windows [][]int32
	r := rand.New(rand.NewPCG(1, 7))
	types, count := []string{"Q4_0", "Q8_0"}, 2
	if os.Getenv("PHASECONV_LONG") != "" {
		types, count = []string{"Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q6_K", "MXFP4"}, 4
	}
	for range count {
		w := make([]int32, 96)
		for i := range w {
			w[i] = int32(r.IntN(256))
		}
		windows = append(windows, w)
	}
	w := ppl.From(windows, 32)
	for _, typ := range types {
		path := filepath.Join(t.TempDir(), "m.gguf")
		tiny.GGUF(t, path, "llama", tiny.Options{Seed: 8, Hidden: 256, Heads: 4, HeadDim: 64, FFN: 256, DType: typ, Untied: true, Edit: soft})
		c, err := checkpoint.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		source := engine.NewOwn(c, 1)
		src := &engine.Reference{Engine: source}
		measure := func(fold func(v *checkpoint.Edited) error) *ppl.Divergence {
			v := checkpoint.NewEdited(c, checkpoint.Edits{})
			if err := fold(v); err != nil {
				t.Fatal(err)
			}
			v.Round = roundStored
			e, err := source.With(t.Context(), v)
			if err != nil {
				t.Fatal(err)
			}
			res, err := e.Compare(t.Context(), w, src, []engine.Lane{{}}, engine.Options{})
			if err != nil {
				t.Fatal(err)
			}
			return &res.Divergences[0]
		}
		a := &contract.Artifact{Manifest: &spec.Manifest{Identities: applied},
			Entry: spec.Artifact{OutType: outTypeSource}, Model: c}
		floor := measure(editedBy(applied).foldLike)
		same := func(v *checkpoint.Edited) error {
			r := rand.New(rand.NewPCG(2, 3))
			for l := range c.Config.Layers {
				y := &c.Config.Layers[l]
				if err := transform.FoldKeys(v, l, drawn(r, y.KVHeads, y.HeadDim)); err != nil {
					return err
				}
			}
			return nil
		}
		g := measure(same)
		note, err := preserved(a, g, floor, nil)
		if err != nil {
			t.Errorf("%s: %v", typ, err)
		}
		t.Logf("%s: %s, floor %.3g, %.2f floors", typ, note, floor.Mean, g.Mean/floor.Mean)
		// Keys alone.
		const factor = 1.5
		g = measure(func(v *checkpoint.Edited) error {
			for l := range c.Config.Layers {
				k := make([]float32, c.Config.Layers[l].KVHeads*c.Config.Layers[l].HeadDim)
				for i := range k {
					k[i] = factor
				}
				v.Edits.Scale(family.Name(l, "attn_k.weight"), "wrong", k)
			}
			return same(v)
		})
		if note, err := preserved(a, g, floor, nil); err == nil {
			t.Errorf("%s: keys alone times %g pass: %s", typ, factor, note)
		} else {
			t.Log(err)
		}
	}
}
