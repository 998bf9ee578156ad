package llama_test

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/convert/bits"
	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// jointOptions code keys and values of a small model together.
func jointOptions(src, out string, parts bits.Parts, recent int, engines engine.Engines) convert.Options {
	o := convert.DefaultOptions()
	o.Source, o.Out, o.Report, o.Threads, o.Tool, o.Engines = src, out, false, 1, "test", engines
	o.Ctx, o.Chunks, o.CalibrationTokens = 128, 4, 1024
	o.Joint = &plan.Joint{GroupOptions: bits.GroupOptions{Parts: parts, Bits: 3, Span: 128}}
	if !parts.Whole() {
		o.Joint.Bits = 1.5
	}
	o.Policy.Anchor, o.Policy.Recent = 32, recent
	return o
}

// A jointArtifact is one that was opened for measurements by both engines.
type jointArtifact struct {
	*contract.Artifact
	groups     [][]*codec.Group
	own, llama engine.Engine
	w          *ppl.Windows
}

func openJoint(t *testing.T, dir string, engines engine.Engines) *jointArtifact {
	t.Helper()
	checks := &contract.Checker{}
	a, err := contract.Open(t.Context(), dir, "", checks)
	if err != nil || a == nil {
		t.Fatalf("%v, checks %+v", err, checks.Checks)
	}
	t.Cleanup(func() { a.Close() })
	x := &jointArtifact{Artifact: a, own: engine.NewOwn(a.Model, 2)}
	if x.llama, err = engines.Open(t.Context(), a.Model); err != nil {
		t.Fatal(err)
	}
	x.w, err = ppl.Tokenize(t.Context(), a.Model, ppl.Text{Name: texts.EvaluationName, Data: texts.Evaluation}, 128, 4)
	if err != nil {
		t.Fatal(err)
	}
	for _, y := range a.Sidecar.Layers {
		x.groups = append(x.groups, y.Groups)
	}
	return x
}

// roots returns the roots of the divergences of all tokens: they go with the errors of scores.
func (x *jointArtifact) roots(t *testing.T, e engine.Engine, recent int) []float64 {
	t.Helper()
	p := kvcache.Policy{Anchor: x.Sidecar.Anchor, Sink: x.Sidecar.Sink, Recent: recent}
	cache, err := kvcache.NewGroups(x.Model.Config, x.groups, p)
	if err != nil {
		t.Fatal(err)
	}
	res, err := e.Compare(t.Context(), x.w, &engine.Reference{Engine: e}, []engine.Lane{{Keys: &engine.Keys{Cache: cache,
		Policy: p, Sidecar: filepath.Join(x.Dir, x.Entry.Sidecar)}}}, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	out := slices.Clone(res.Divergences[0].KLD)
	for i, v := range out {
		out[i] = math.Sqrt(max(v, 0))
	}
	return out
}

// apart is how far two rows are from each other, as a share of the first's length.
func apart(a, b []float64) float64 {
	var d, n float64
	for i, v := range a {
		d, n = d+float64((v-b[i])*(v-b[i])), n+float64(v*v)
	}
	return math.Sqrt(d / n)
}

// TestJointVerify: joint codes that the own pass fitted cost every token in llama.cpp what they cost it in the own
// pass, as exactly as F16 caches allow (and sums in F16 of flash attention, hence four times what they round off):
// keys and values in one group, apart, keys or values alone, and given the layer below; with recent tokens,
// which are replaced in the caches later, and without.
func TestJointVerify(t *testing.T) {
	w := start(t, llama.Start{})
	engines := &llama.Engines{Worker: w, Place: place()}
	src := tinyFile(t)
	for _, x := range []struct {
		name  string
		parts bits.Parts
		pairs bool
	}{{"kv", bits.PartsBoth, false}, {"pairs", bits.PartsBoth, true}, {"k+v", bits.PartsApart, false},
		{"k", bits.PartsKeys, false}, {"v", bits.PartsValues, false}} {
		t.Run(x.name, func(t *testing.T) {
			o := jointOptions(src, filepath.Join(t.TempDir(), "out"), x.parts, 0, nil)
			o.Joint.Pairs = x.pairs
			if _, err := convert.Convert(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			a := openJoint(t, o.Out, engines)
			disturbed, err := a.own.With(t.Context(), noisy{a.Model})
			if err != nil {
				t.Fatal(err)
			}
			for i, recent := range []int{0, 16} {
				own, got := a.roots(t, a.own, recent), a.roots(t, a.llama, recent)
				floor := apart(own, a.roots(t, disturbed, recent))
				other := apart(own, a.roots(t, a.llama, 16*(1-i)))
				t.Logf("recent %d: apart %.3f, disturbed %.3f, with another window %.3f", recent, apart(own, got), floor, other)
				if d := apart(own, got); d > 4*floor || other < 1.5*d {
					t.Errorf("recent %d: roots of the divergences are %g apart, %g where weights are disturbed, %g with another window",
						recent, d, floor, other)
				}
			}
		})
	}
}

// TestJointConvert fits joint codes to what llama.cpp computes: they cost what those of the own pass do, a conversion
// by units has the bytes of one in a piece, and models that the table of families lacks can have them too.
func TestJointConvert(t *testing.T) {
	w := start(t, llama.Start{})
	engines := &llama.Engines{Worker: w, Place: place()}
	src, dir := tinyFile(t), t.TempDir()
	run := func(o convert.Options) *convert.Result {
		t.Helper()
		r, err := convert.Convert(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if !r.Verify.OK || r.Manifest.Version != spec.VersionGroups {
			t.Errorf("%s: version %d, %+v", o.Out, r.Manifest.Version, r.Verify.Contract)
		}
		return r
	}
	own := run(jointOptions(src, filepath.Join(dir, "own"), bits.PartsBoth, 16, nil))
	o := jointOptions(src, filepath.Join(dir, "llama"), bits.PartsBoth, 16, engines)
	r := run(o)
	a, b := own.Verify.KLD, r.Verify.KLD
	t.Logf("fitted by the own pass: KLD %.4f ± %.4f, by llama.cpp %.4f ± %.4f", a.Mean, a.MeanErr, b.Mean, b.MeanErr)
	if math.Abs(a.Mean-b.Mean) > 2*math.Hypot(a.MeanErr, b.MeanErr) {
		t.Errorf("KLD %g ± %g where the own pass fitted, %g ± %g where llama.cpp did", a.Mean, a.MeanErr, b.Mean, b.MeanErr)
	}
	u := jointOptions(src, filepath.Join(dir, "units"), bits.PartsBoth, 16, engines)
	u.Work = convert.WorkDir(u.Out)
	for i := range 2 {
		if _, err := convert.RunUnit(t.Context(), u, i+1, 2); err != nil {
			t.Fatal(err)
		}
	}
	u.Merge = true
	run(u)
	for _, name := range []string{"model.gguf", spec.GGUFSidecarName} {
		x, err := os.ReadFile(filepath.Join(o.Out, name))
		if err != nil {
			t.Fatal(err)
		}
		if y, err := os.ReadFile(filepath.Join(u.Out, name)); err != nil || !bytes.Equal(x, y) {
			t.Errorf("%s: by units other bytes (%v)", name, err)
		}
	}
	for _, name := range []string{"gpt2", "falcon", "lfm2", "gemma4"} {
		t.Run(name, func(t *testing.T) {
			o := jointOptions(sampleText(t, name), filepath.Join(t.TempDir(), "out"), bits.PartsBoth, 16, engines)
			o.OutType, o.Policy.Anchor = plan.OutTypeSource, 0
			r := run(o)
			t.Logf("KLD %.4f", r.Verify.KLD.Mean)
		})
	}
	// Latent attention has no values of its own: keys alone are coded, or nothing where joint codes were chosen.
	o = jointOptions(sampleText(t, "deepseek2"), filepath.Join(dir, "latent"), bits.PartsBoth, 0, engines)
	o.OutType, o.Policy.Anchor = plan.OutTypeSource, 0
	if _, err := convert.Convert(t.Context(), o); err == nil || !strings.Contains(err.Error(), "(MLA)") ||
		!strings.Contains(err.Error(), "joint") {
		t.Errorf("latent attention: %v", err)
	}
	o.Joint.OrKeys = true
	if r, err := convert.Convert(t.Context(), o); err != nil || r.Manifest.Version != spec.Version {
		t.Errorf("latent attention: %v", err)
	}
}

// noisy are weights whose queries, keys and values are off by what F16 rounds off, up and down: what llama.cpp's
// caches do to them.
type noisy struct{ *checkpoint.Checkpoint }

func (n noisy) ReadRows(t *checkpoint.Tensor, row0, rows int, dst []float32) error {
	err := n.Checkpoint.ReadRows(t, row0, rows, dst)
	if strings.Contains(t.Name, "attn_q") || strings.Contains(t.Name, "attn_k") || strings.Contains(t.Name, "attn_v") {
		for i := range dst {
			dst[i] *= 1 + float32(i%2*2-1)/(1<<12)
		}
	}
	return err
}
