package verify

import (
	"cmp"
	"fmt"

	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/audit"
	"github.com/phaseconv/phaseconv/verify/backends"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// What conversions left of the divergence of quantised keys and values, as docs/advise.md lists it.
const (
	// Keys with constants from biases: 0.92 to 0.016 and 3.3 to 0.029 (q4_0 at 512 and 8192), 0.90 to
	// 0.061 (mlx4).
	biasesLow, biasesHigh = 0.01, 0.07
	biasesModel           = "Qwen2.5-Coder-0.5B"
	// Scales between norm gains: the error of scores falls to a share that the gains tell, the divergence
	// to about its square. 0.081 to 0.027 where that square is 0.39.
	gainsLow, gainsHigh = 0.6, 1.2
	gainsModel          = "Gemma 3 270M"
	// Neither: 0.037 to 0.019 and 0.030 to 0.026 (q4_0 at 512), 0.105 to 0.063 and 0.093 to 0.030 (mlx4 at
	// a target of 4096 and of 512).
	plainLow, plainHigh = 0.3, 0.9
	plainModel          = "SmolLM2-135M"
	// leastRemovable is the share of the energy of keys that counts as a constant worth removing.
	leastRemovable = 0.1
)

// expect fills in what a conversion is likely to leave, from what biases and gains tell.
func expect(i *spec.AdviseImprove, g *audit.Gains) {
	i.ScoreErrorLeft, i.Removable = g.Balance, g.Removable
	low, high, like := plainLow, plainHigh, plainModel+", whose keys have neither biases nor norms"
	switch {
	case g.Removable != nil && *g.Removable >= leastRemovable:
		low, high, like = biasesLow, biasesHigh, biasesModel+", whose keys have constants from biases"
	case g.Balance != nil:
		share := *g.Balance * *g.Balance
		low, high, like = min(1, gainsLow*share), min(1, gainsHigh*share), gainsModel+", whose keys have norms"
	}
	i.Expected = &spec.AdviseExpected{Low: low * i.Worst, High: high * i.Worst, Like: like}
}

// improve names the smallest pair that runs but misses the gate, if it is smaller than choice c
// (none where ok is false), and the conversion to try for it.
func (a *adviser) improve(m adviseModel, c spec.AdviseChoice, ok bool) *spec.AdviseImprove {
	now := a.cache(m, kvcache.F16)
	if ok {
		now = c.CacheBytes
	}
	p, found := a.smallest(m, func(p kvcache.CacheTypes, worst float64) bool {
		runs, _ := a.runs(m, p.K, p.V)
		return runs == backends.Yes && worst > a.o.MaxKLD && a.cache(m, p) < now
	})
	if !found {
		return nil
	}
	source := cmp.Or(a.o.Source, "MODEL")
	k, v := kvcache.TypeName(p.K), kvcache.TypeName(p.V)
	command := fmt.Sprintf("phaseconv convert %s -o OUT --cache-type-k %s --cache-type-v %s --target-ctx %d",
		backends.Quote(source), k, v, a.ctx())
	switch {
	case a.mlx(): // it reads folders
		command += " --format safetensors"
	case !a.o.Rotation:
		command += " --cache-rotation off"
	}
	return &spec.AdviseImprove{
		KType: k, VType: v, Worst: a.worst[adviseKey{p.K, p.V, m.converted}], Saved: now - a.cache(m, p),
		Command: command,
	}
}
