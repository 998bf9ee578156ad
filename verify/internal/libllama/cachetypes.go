//go:build linux && (amd64 || arm64)

package libllama

import (
	"context"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
)

// CacheKeys are the key cache types that CacheTypes measures, largest first.
var CacheKeys = []gguf.Type{gguf.TypeF16, gguf.TypeQ8_0, gguf.TypeQ4_0, gguf.TypeQ1_0}

// CacheOptions of CacheTypes.
type CacheOptions struct {
	// Published and Converted are GGUF files of one model, with F32 weights: with
	// others llama.cpp also rounds activations. Converted may be empty.
	Published, Converted string
	// Text is cut into Chunks windows of Ctx tokens, whose second halves are scored.
	Text        ppl.Text
	Ctx, Chunks int
	Threads     int
	// Emulate lists the types of keys that package kvcache's emulation is measured
	// with too. It takes longer than llama.cpp itself.
	Emulate []gguf.Type
}

// A CacheRow is what one key cache type, with F16 values, costs in llama.cpp
// against the published model with F16 caches.
type CacheRow struct {
	K         gguf.Type
	Converted bool
	// Refused is llama.cpp's reason if it makes no such cache; then there are no numbers.
	Refused string
	Result
	// Emulated is our emulation's row, nil where it was not asked for.
	Emulated *spec.AdviseRow
}

func (r CacheRow) String() string {
	name := map[bool]string{false: "published", true: "converted"}[r.Converted] + " " + kvcache.TypeName(r.K)
	if r.Refused != "" {
		return name + ": refused"
	}
	s := fmt.Sprintf("%s: KLD %.6f ± %.6f, PPL ratio %.4f ± %.4f, same top %.1f %%", name, r.KLD, r.KLDErr, r.Ratio, r.RatioErr, 100*r.SameTop)
	if e := r.Emulated; e != nil {
		s += fmt.Sprintf("; emulated: KLD %.6f ± %.6f, PPL ratio %.4f, same top %.1f %%", e.KLD, e.KLDErr, e.PPLRatio, 100*e.SameTop)
	}
	return s
}

// CacheTypes measures CacheKeys in llama.cpp, the rows of the published model
// first. base is the published model with F16 caches.
func CacheTypes(ctx context.Context, l *Library, o CacheOptions) (rows []CacheRow, base Result, err error) {
	c, err := checkpoint.Open(o.Published)
	if err != nil {
		return nil, base, err
	}
	defer c.Close()
	w, err := ppl.Tokenize(ctx, c, o.Text, o.Ctx, o.Chunks)
	if err != nil {
		return nil, base, err
	}
	var contexts []*Context
	for i, path := range []string{o.Published, o.Converted} {
		if path == "" {
			continue
		}
		m, err := l.Load(path)
		if err != nil {
			return nil, base, err
		}
		defer m.Close()
		for _, k := range CacheKeys {
			r := CacheRow{K: k, Converted: i == 1}
			x, err := m.Context(Options{Ctx: o.Ctx, K: k, V: gguf.TypeF16, Flash: true, Threads: o.Threads})
			if err != nil {
				r.Refused = err.Error()
			} else {
				defer x.Close() // before its model: deferred later
				contexts = append(contexts, x)
			}
			rows = append(rows, r)
		}
	}
	if len(rows) == 0 || rows[0].Refused != "" {
		return nil, base, fmt.Errorf("%s: no F16 cache to compare with: %s", o.Published, rows[0].Refused)
	}
	results, err := Measure(w, contexts[0], contexts...)
	if err != nil {
		return nil, base, err
	}
	base, results = results[0], results[1:]
	for i := range rows {
		if rows[i].Refused == "" {
			rows[i].Result, results = results[0], results[1:]
		}
	}
	if len(o.Emulate) > 0 {
		err = emulate(ctx, c, o, rows)
	}
	return rows, base, err
}

// emulate fills in Emulated for the rows that are not refused.
func emulate(ctx context.Context, published *checkpoint.Checkpoint, o CacheOptions, rows []CacheRow) error {
	var converted *checkpoint.Checkpoint
	if o.Converted != "" {
		var err error
		if converted, err = checkpoint.Open(o.Converted); err != nil {
			return err
		}
		defer converted.Close()
	}
	a := verify.AdviseOptions{
		Texts: []ppl.Text{o.Text}, Ctx: []int{o.Ctx}, Chunks: o.Chunks, Rotation: true, HalfSums: true, Threads: o.Threads,
	}
	for _, r := range rows {
		if !r.Converted && r.Refused == "" && slices.Contains(o.Emulate, r.K) {
			a.Pairs = append(a.Pairs, kvcache.CacheTypes{K: r.K, V: gguf.TypeF16, Rotation: true})
		}
	}
	if len(a.Pairs) == 0 {
		return nil // Advise would search
	}
	advice, err := verify.Advise(ctx, published, converted, a)
	if err != nil {
		return err
	}
	for i := range rows {
		for j := range advice.Rows {
			if e := &advice.Rows[j]; e.Converted == rows[i].Converted && e.KType == kvcache.TypeName(rows[i].K) && rows[i].Refused == "" {
				rows[i].Emulated = e
			}
		}
	}
	return nil
}
