package main

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// TestFFNEnergy: the measured size of neurons is what the forward pass computes.
// Scaling a neuron by the inverse root of its energy, with G4, makes all energies
// one; a neuron that is taken out of up has none.
func TestFFNEnergy(t *testing.T) {
	window := make([]int32, 64)
	for i := range window {
		window[i] = int32(i * 31 % 256)
	}
	for _, fam := range tiny.Families {
		dead := 5
		c := tiny.Open(t, fam, tiny.Options{Layers: 1, Edit: func(name string, x []float32) {
			if strings.Contains(name, "up_proj") || strings.Contains(name, "w3") {
				clear(x[dead*64 : (dead+1)*64])
			}
		}})
		tap := &ffnEnergy{Config: c.Config, Weights: c, Threads: 2}
		m := refmodel.New(c.Config, c, 2)
		variant := &refmodel.Variant{}
		if err := m.Run(context.Background(), [][]int32{window}, []*refmodel.Variant{variant}, refmodel.Options{Hooks: refmodel.Hooks{FFN: tap.FFN}}); err != nil {
			t.Fatal(err)
		}
		up, down, err := ffnNorms(c.Config, c, 0)
		if err != nil {
			t.Fatal(err)
		}
		for e, energy := range tap.Energy[0] {
			if energy[dead] != 0 || up[e][dead] != 0 || down[e][dead] == 0 {
				t.Errorf("%s, expert %d: the dead neuron has %g", fam, e, energy[dead])
			}
			if n := len(energy); n != c.Config.Layers[0].FFN.Size || slices.Max(energy) == 0 {
				t.Errorf("%s, expert %d: %d neurons, up to %g", fam, e, n, slices.Max(energy))
			}
		}
		double := make([][][]float32, 1)
		for range max(1, c.Config.Experts()) {
			s := make([]float32, c.Config.Layers[0].FFN.Size)
			for j := range s {
				s[j] = 2
			}
			double[0] = append(double[0], s)
		}
		f, err := transform.FoldFFN(c, c.Config, double)
		if err != nil {
			t.Fatal(err)
		}
		twice := &ffnEnergy{Config: c.Config, Weights: f, Threads: 1}
		if err := refmodel.New(c.Config, f, 2).Run(context.Background(), [][]int32{window}, []*refmodel.Variant{{}}, refmodel.Options{Hooks: refmodel.Hooks{FFN: twice.FFN}}); err != nil {
			t.Fatal(err)
		}
		for e, energy := range tap.Energy[0] {
			for j, v := range energy {
				if twice.Energy[0][e][j] != 4*v { // powers of two are exact
					t.Fatalf("%s, expert %d, neuron %d: %g, and %g with up doubled", fam, e, j, v, twice.Energy[0][e][j])
				}
			}
		}
		if len(tap.Energy[0]) != max(1, c.Config.Experts()) {
			t.Errorf("%s: %d experts", fam, len(tap.Energy[0]))
		}
	}
}
