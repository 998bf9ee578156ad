// Command fold writes a GGUF model again as F32 with identities folded into its
// weights, for scripts/ffn/quantize.py:
//
//	fold -in model.gguf -out folded.gguf [-g1 none|hadamard|srht] [-g4 weights|text -text FILE] [-dither]
//
// -g4 weights takes the size of a neuron's activations from its rows of up, -g4
// text measures it. -dither adds noise of the width of a 4-bit step to each block
// of 32 weights first: models that come from 4-bit files lie on a grid, on which a
// quantiser of the same block size loses nothing and any rotation puts an end to it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "fold:", err)
		os.Exit(1)
	}
}

// dithered is a model with noise on its matrices.
type dithered struct{ checkpoint.Weights }

func (d dithered) ReadRows(t *checkpoint.Tensor, row0, n int, dst []float32) error {
	if err := d.Weights.ReadRows(t, row0, n, dst); err != nil || len(t.Shape) < 2 {
		return err
	}
	var name uint64
	for _, b := range []byte(t.Name) {
		name = name*131 + uint64(b)
	}
	for r := range n {
		rng := rand.New(rand.NewPCG(name, uint64(row0+r)))
		row := dst[r*t.Cols() : (r+1)*t.Cols()]
		for at := 0; at < len(row); at += 32 {
			block := row[at:min(at+32, len(row))]
			lo, hi := block[0], block[0]
			for _, v := range block {
				lo, hi = min(lo, v), max(hi, v)
			}
			for i := range block {
				block[i] += (hi - lo) / 15 * (rng.Float32() - 0.5)
			}
		}
	}
	return nil
}

func run() error {
	in, out := flag.String("in", "", "GGUF model"), flag.String("out", "", "F32 GGUF model to write")
	g1, g4 := flag.String("g1", "", "residual rotation"), flag.String("g4", "", "FFN scales")
	text := flag.String("text", "", "text to measure activations on")
	dither := flag.Bool("dither", false, "take the weights off their grid")
	threads := flag.Int("threads", 2, "threads")
	flag.Parse()
	c, err := checkpoint.Open(*in)
	if err != nil {
		return err
	}
	defer c.Close()
	if c.Container != checkpoint.GGUF {
		return errors.New("not a GGUF file")
	}
	var src checkpoint.Weights = c
	if *dither {
		src = dithered{c}
	}
	if *g4 != "" {
		scale, err := scales(c, src, *g4, *text, *threads)
		if err != nil {
			return err
		}
		if src, err = transform.FoldFFN(src, c.Config, scale); err != nil {
			return err
		}
	}
	var untied *checkpoint.Tensor
	if *g1 != "" {
		q, err := transform.NewResidualRotation(*g1, c.Config.Hidden, 1)
		if err != nil {
			return err
		}
		f, err := transform.FoldResidual(src, c.Config, q, *threads)
		if err != nil {
			return err
		}
		src, untied = f, f.Untied()
	}
	return write(*out, c, src, untied)
}

// scales returns those of G4.
func scales(c *checkpoint.Checkpoint, w checkpoint.Weights, how, text string, threads int) ([][][]float32, error) {
	cfg := c.Config
	var energy [][][]float64
	switch how {
	case "weights":
	case "text":
		data, err := os.ReadFile(text)
		if err != nil {
			return nil, err
		}
		win, err := ppl.Tokenize(context.Background(), c, ppl.Text{Name: text, Data: data}, 512, 12)
		if err != nil {
			return nil, err
		}
		tap := &ffnEnergy{Config: cfg, Weights: w, Threads: threads}
		if err := refmodel.New(cfg, w, threads).Run(context.Background(), win.Tokens, []*refmodel.Variant{{}}, refmodel.Options{Hooks: refmodel.Hooks{FFN: tap.FFN}}); err != nil {
			return nil, err
		}
		energy = tap.Energy
	default:
		return nil, fmt.Errorf("-g4 %q", how)
	}
	out := make([][][]float32, len(cfg.Layers))
	for l := range out {
		up, down, err := ffnNorms(cfg, w, l)
		if err != nil {
			return nil, err
		}
		for e := range up {
			a := up[e]
			if energy != nil {
				a = energy[l][e]
			}
			out[l] = append(out[l], transform.FFNBalance(a, down[e]))
		}
	}
	return out, nil
}

func write(path string, c *checkpoint.Checkpoint, src checkpoint.Weights, untied *checkpoint.Tensor) error {
	f := c.File()
	var tensors []*checkpoint.Tensor
	var specs []gguf.TensorSpec
	add := func(name string, t *checkpoint.Tensor, shape []int) {
		s := gguf.TensorSpec{Name: name, Type: gguf.TypeF32}
		for i := len(shape) - 1; i >= 0; i-- {
			s.Dims = append(s.Dims, shape[i])
		}
		tensors, specs = append(tensors, t), append(specs, s)
	}
	for i := range f.Tensors {
		t, ok := src.Find(f.Tensors[i].Name)
		if !ok {
			return fmt.Errorf("tensor %s is not part of the graph", f.Tensors[i].Name)
		}
		add(t.Name, t, t.Shape)
	}
	if untied != nil {
		add(untied.Name, untied, untied.Shape)
	}
	var kvs []gguf.KV
	for _, kv := range f.KVs {
		if kv.Key == "general.file_type" {
			kv = gguf.Value(kv.Key, uint32(0))
		}
		kvs = append(kvs, kv)
	}
	w, err := gguf.Create(path, kvs, specs)
	if err != nil {
		return err
	}
	defer w.Abort()
	for _, t := range tensors {
		err := w.WriteTensor(t.Name, func(o io.Writer) error {
			step := max(1, 1<<20/t.Cols())
			buf := make([]float32, step*t.Cols())
			size, err := gguf.RowBytes(gguf.TypeF32, len(buf))
			if err != nil {
				return err
			}
			b := make([]byte, size)
			for r := 0; r < t.Rows(); r += step {
				n := min(step, t.Rows()-r) * t.Cols()
				if err := src.ReadRows(t, r, n/t.Cols(), buf[:n]); err != nil {
					return err
				}
				if err := gguf.QuantizeRow(gguf.TypeF32, b[:4*n], buf[:n]); err != nil {
					return err
				}
				if _, err := o.Write(b[:4*n]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return w.Commit()
}
