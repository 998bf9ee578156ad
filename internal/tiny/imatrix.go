package tiny

import (
	"io"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/gguf"
)

// Imatrix writes an importance matrix for a model, as llama-imatrix does: sums of squares of all
// sizes over counts, of the last expert of a bank none. The first matrix of attention is left out.
func Imatrix(t testing.TB, c *checkpoint.Checkpoint, path string) {
	t.Helper()
	r := rand.New(rand.NewPCG(3, 5))
	var specs []gguf.TensorSpec
	data := map[string][]float32{}
	for _, x := range c.Config.Tensors() {
		w, ok := c.Find(x.Name)
		if !ok || len(w.Shape) < 2 || x.Name == "token_embd.weight" || x.Name == "blk.0.attn_q.weight" {
			continue
		}
		n, matrices := w.Cols(), w.Rows()/w.Shape[len(w.Shape)-2]
		var sums, counts []float32
		for e := range matrices {
			count := float32(512)
			if matrices > 1 && e == matrices-1 {
				count = 0
			}
			counts = append(counts, count)
			for range n {
				sums = append(sums, count*float32(math.Exp(3*r.NormFloat64())))
			}
		}
		name := c.Config.Family.GGUFName(x.Name)
		data[name+".in_sum2"], data[name+".counts"] = sums, counts
		specs = append(specs, gguf.TensorSpec{Name: name + ".in_sum2", Type: gguf.TypeF32, Dims: []int{n, matrices}},
			gguf.TensorSpec{Name: name + ".counts", Type: gguf.TypeF32, Dims: []int{1, matrices}})
	}
	w, err := gguf.Create(path, []gguf.KV{gguf.Value("general.type", "imatrix")}, specs)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, s := range specs {
		err := w.WriteTensor(s.Name, func(o io.Writer) error {
			_, err := o.Write(dtype.AppendF32(nil, data[s.Name]))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}
