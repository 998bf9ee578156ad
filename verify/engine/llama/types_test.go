package llama_test

import (
	"encoding/binary"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
)

// stored writes a random llama whose attention matrices have a type, by writing them or, where they
// cannot be written, as blocks of random bits.
func stored(t *testing.T, typ gguf.Type) string {
	t.Helper()
	dir := t.TempDir()
	plain, path := filepath.Join(dir, "plain.gguf"), filepath.Join(dir, "model.gguf")
	tiny.New(t, "llama", tiny.Options{Seed: 6, Hidden: 256, Heads: 8, HeadDim: 32, Context: 512}).GGUF(t, plain)
	f, err := gguf.Open(plain)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := rand.New(rand.NewPCG(3, 4))
	rewrite(t, f, path, f.KVs, func(x *gguf.Tensor) (gguf.Type, []byte) {
		if !strings.Contains(x.Name, "attn_") || strings.Contains(x.Name, "norm") {
			return x.Type, nil
		}
		n, err := gguf.RowBytes(typ, x.RowLen())
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, x.Rows()*n)
		if gguf.CanQuantize(typ) {
			row := make([]float32, x.RowLen())
			for i := range x.Rows() {
				if err := f.ReadRows(x, i, 1, row); err != nil {
					t.Fatal(err)
				}
				if err := gguf.QuantizeRow(typ, b[i*n:(i+1)*n], row); err != nil {
					t.Fatal(err)
				}
			}
			return typ, b
		}
		_, size := typ.Block()
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		for i := 0; i < len(b); i += size { // a small F16 scale begins each block
			binary.LittleEndian.PutUint16(b[i:], dtype.F32ToF16(4e-5))
		}
		return typ, b
	})
	return path
}

// tryEdits measures a scale of keys that queries undo, and one that they do not meet: the former changes
// predictions as much as storing the weights anew does.
func tryEdits(t *testing.T, engines engine.Engines, src string) {
	t.Helper()
	c, e := opened(t, engines, src)
	scaled := make(transform.ModelEdits, len(c.Config.Layers))
	for l := range scaled {
		for range c.Config.Layers[l].KVHeads {
			s := make([]float32, c.Config.Layers[l].HeadDim/2)
			for p := range s {
				s[p] = 1 + float32(p%5)/4
			}
			scaled[l] = append(scaled[l], transform.KeyEdit{Pairs: &transform.PairRotation{Scale: s}})
		}
	}
	lane := engine.Stock(kvcache.CacheTypes{K: gguf.TypeF32, V: gguf.TypeF32})
	with := lane
	with.Edits = scaled
	res, err := e.Compare(t.Context(), ppl.From([][]int32{ids(96, 1)}, 48), &engine.Reference{Engine: e, Lane: lane},
		[]engine.Lane{lane, with}, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	same, other := res.Divergences[0].Mean, res.Divergences[1].Mean
	t.Logf("KLD of the same %g, of scaled keys and queries %g", same, other)
	if same > 1e-12 || other == 0 || other > 1e-3 {
		t.Errorf("KLD of the same %g, of scaled keys and queries %g", same, other)
	}
}

// TestTypes: edited tensors keep the types of the source's; of a type that cannot be written they become
// Q8_0, and edits are tried in that type.
func TestTypes(t *testing.T) {
	w := start(t, llama.Start{})
	for _, x := range []struct{ from, to gguf.Type }{
		{gguf.TypeQ4_1, gguf.TypeQ4_1}, {gguf.TypeQ5_K, gguf.TypeQ5_K}, {gguf.TypeIQ4_XS, gguf.TypeQ8_0},
	} {
		t.Run(x.from.String(), func(t *testing.T) {
			src, dir := stored(t, x.from), t.TempDir()
			o := unknownOptions(src, filepath.Join(dir, "out"), &llama.Engines{Worker: w, Place: llama.Place{Threads: 1}})
			o.OutType, o.Balance = plan.OutTypeSource, true
			tryEdits(t, o.Engines, src)
			r, err := convert.Convert(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if !r.Verify.OK {
				t.Errorf("verified: %+v", r.Verify.Contract)
			}
			f, err := gguf.Open(filepath.Join(o.Out, "model.gguf"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			edited := sameBut(t, src, f.Path)
			t.Log(edited)
			if len(edited) == 0 {
				t.Error("nothing was edited")
			}
			for _, n := range edited {
				if y, _ := f.Tensor(n); y.Type != x.to {
					t.Errorf("%s is %s, expected %s", n, y.Type, x.to)
				}
			}
		})
	}
}

// TestSplit: of a split file, named by any of its parts, a split file is made, with the same tensors in
// each; the model that it is has the bytes of one made of a single file.
func TestSplit(t *testing.T) {
	w := start(t, llama.Start{})
	whole, dir := stored(t, gguf.TypeF16), t.TempDir()
	f, err := gguf.Open(whole)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	base, n, in := filepath.Join(dir, "big"), 3, map[string]int{}
	for i := range n {
		kvs := gguf.SplitKeys(i, n, len(f.Tensors))
		if i == 0 {
			kvs = append(slices.Clone(f.KVs), kvs...)
		}
		part := f.Tensors[i*len(f.Tensors)/n : (i+1)*len(f.Tensors)/n]
		for _, x := range part {
			in[x.Name] = i
		}
		some(t, f, part, gguf.ShardPath(base, i, n), kvs, nil)
	}
	outs := map[string]string{}
	for name, src := range map[string]string{"whole": whole, "split": gguf.ShardPath(base, 1, n)} {
		o := unknownOptions(src, filepath.Join(dir, name), &llama.Engines{Worker: w, Place: llama.Place{Threads: 1}})
		o.OutType, o.Balance = plan.OutTypeSource, true
		r, err := convert.Convert(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if !r.Verify.OK {
			t.Errorf("%s: verified %+v", name, r.Verify.Contract)
		}
		outs[name] = filepath.Join(o.Out, r.Manifest.Artifacts[0].Model)
	}
	if want := filepath.Join(dir, "split", "model-00001-of-00003.gguf"); outs["split"] != want {
		t.Errorf("the artifact is %s, expected %s", outs["split"], want)
	}
	if differ := sameBut(t, outs["whole"], outs["split"]); len(differ) > 0 {
		t.Errorf("of one file and of three: %v differ", differ)
	}
	if differ := sameBut(t, whole, outs["split"]); len(differ) != 4 {
		t.Errorf("%v were edited, expected queries and keys of two layers", differ)
	}
	g, err := gguf.Open(outs["split"])
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for i := range g.Tensors {
		if x := &g.Tensors[i]; x.Shard != in[x.Name] {
			t.Errorf("%s is in file %d, in the source in file %d", x.Name, x.Shard, in[x.Name])
		}
	}
}
