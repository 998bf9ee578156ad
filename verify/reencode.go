package verify

import (
	"math"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/ppl"
)

// What storing weights anew costs in quantised types cannot be had by storing them as they are: they lie on the
// steps of their type, and stay there. Nor by scales of rows, which the types' own scales take up. It takes an
// edit that moves numbers between the steps, as those of the artifact do. So the floor of its proof of function
// is the source with edits of the same kinds, which cancel as exactly, and mean nothing.

// requantFloors is how many floors an artifact may diverge from its source by. It is another draw of the
// same errors, 0.2 to 1.3 floors (TestRequantised).
const requantFloors = 2

// likeFloor says whether a divergence is above requantFloors floors by chance at most: by three standard errors
// of the difference, token by token. Roots of divergences go with the errors of scores, and few tokens carry most
// of a mean, see ppl.Better.
func likeFloor(g, f *ppl.Divergence) bool {
	if len(g.KLD) != len(f.KLD) || len(g.KLD) == 0 {
		return false
	}
	diff := make([]float64, len(g.KLD))
	for i, v := range g.KLD {
		diff[i] = math.Sqrt(max(v, 0)) - math.Sqrt(requantFloors*max(f.KLD[i], 0))
	}
	mean, err := ppl.MeanErr(diff)
	return mean <= 3*err
}

// edited says which kinds of edits an artifact has that mix rows.
type edited struct{ keys, values bool }

func editedBy(ids []spec.Identity) (e edited) {
	for _, id := range ids {
		if !id.Applied {
			continue
		}
		switch id.ID {
		case transform.IDPairAngle, transform.IDKeyTransform, transform.IDStillTransform:
			e.keys = true
		case transform.IDValueTransform:
			e.values = true
		}
	}
	return e
}

// foldLike folds edits of these kinds into a view: scales and, of keys, a turn of all pairs; of values an
// orthogonal matrix.
func (e edited) foldLike(v *checkpoint.Edited) error {
	c := v.Config()
	for l := range c.Layers {
		y := &c.Layers[l]
		if y.Owner != l {
			continue
		}
		keys := transform.CheckPairScale(y) == nil
		if keys && (!e.keys || y.QKNorm != family.NoQKNorm) { // no turn passes through gains
			if err := transform.FoldPairScale(v, l, transform.FloorPairScale(y)); err != nil {
				return err
			}
			keys = false
		}
		edits := make([]transform.KeyEdit, y.KVHeads)
		for h := range edits {
			if keys {
				edits[h].Pairs = turned(y.HeadDim)
			}
			if e.values && transform.CheckLayerValues(c, l) == nil {
				m := cosines(y.HeadDim)
				edits[h].Values = &transform.KeyTransform{Key: m, Query: m}
			}
		}
		if err := transform.FoldKeys(v, l, edits); err != nil {
			return err
		}
	}
	return nil
}

// turned scales all pairs of a head by the root of two and turns them.
func turned(d int) *transform.PairRotation {
	p := &transform.PairRotation{Scale: make([]float32, d/2), Angle: make([]float64, d/2)}
	for i := range p.Scale {
		p.Scale[i], p.Angle[i] = math.Sqrt2, 0.5
	}
	return p
}

// cosines is the matrix of the cosine transform of d numbers: orthogonal, and dense at any d.
func cosines(d int) []float64 {
	m := make([]float64, d*d)
	for i := range d {
		size := math.Sqrt(2 / float64(d))
		if i == 0 {
			size = math.Sqrt(1 / float64(d))
		}
		for j := range d {
			m[i*d+j] = size * math.Cos(math.Pi*float64(i)*(float64(j)+0.5)/float64(d))
		}
	}
	return m
}
