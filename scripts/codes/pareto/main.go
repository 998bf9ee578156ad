// Command pareto measures what keys cost and lose with many codes, and with cache
// types of stock llama.cpp, for docs/codes.md: bytes per key against divergence and
// perplexity. Rows are appended to a TSV file as they are measured; points that are
// in it are left out, so that a run can be taken up.
//
//	pareto -model model.gguf -fit valid.txt -text test.txt -o points.tsv POINT...
//
// A POINT is a stock type (q4_0), or code:bits:alloc:exceptions, such as
// frame:1:sensitivity:0+8; several numbers of exceptions share one fit. A number
// with the letter g keeps the scale that fits best, without the code's gain.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/phaseconv/phaseconv/convert/bits"

	"github.com/phaseconv/phaseconv/convert/calibrate"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

const header = "model\tcode\tbits\talloc\texceptions\tseed\tbytes_per_key\tppl_ratio\tppl_ratio_err\tkld\tkld_err\tsame_top\tfit_tokens\twindows\n"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "pareto:", err)
		os.Exit(1)
	}
}

type bench struct {
	name    string
	c       *checkpoint.Checkpoint
	m       *refmodel.Model
	fit     *ppl.Windows
	text    *ppl.Windows
	seed    uint64
	threads int
	tokens  int
	done    map[string]bool
	out     *os.File
	signs   map[string][][]int
}

func run() error {
	model := flag.String("model", "", "checkpoint")
	fit := flag.String("fit", "", "text to fit to")
	text := flag.String("text", "", "text to measure on")
	out := flag.String("o", "", "TSV file to append to")
	tokens := flag.Int("tokens", 6144, "tokens to fit to")
	chunks := flag.Int("chunks", 4, "windows of 512 tokens to measure")
	skip := flag.Int("skip", 0, "windows of the text to leave out first")
	seed := flag.Uint64("seed", 1, "seed")
	threads := flag.Int("threads", 1, "threads")
	flag.Parse()
	c, err := checkpoint.Open(*model)
	if err != nil {
		return err
	}
	defer c.Close()
	b := &bench{name: strings.TrimSuffix(filepath.Base(filepath.Clean(*model)), ".gguf"), c: c, m: refmodel.New(c.Config, c, *threads), seed: *seed, threads: *threads, tokens: *tokens,
		done: map[string]bool{}, signs: map[string][][]int{}}
	if b.fit, err = cut(c, *fit, *tokens/512, ppl.TokenizeSpread); err != nil {
		return err
	}
	if b.text, err = cut(c, *text, *chunks+*skip, ppl.Tokenize); err != nil {
		return err
	}
	b.text.Tokens, b.text.Targets = b.text.Tokens[*skip:], b.text.Targets[*skip*b.text.PerWindow():]
	old, err := os.ReadFile(*out)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, line := range strings.Split(string(old), "\n") {
		if f := strings.Split(line, "\t"); len(f) > 6 {
			b.done[strings.Join(f[:6], "\t")] = true
		}
	}
	if b.out, err = os.OpenFile(*out, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666); err != nil {
		return err
	}
	defer b.out.Close()
	if len(old) == 0 {
		if _, err := b.out.WriteString(header); err != nil {
			return err
		}
	}
	for _, p := range flag.Args() {
		if err := b.point(p); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

type cutter func(ctx context.Context, c *checkpoint.Checkpoint, t ppl.Text, n, chunks int) (*ppl.Windows, error)

func cut(c *checkpoint.Checkpoint, path string, windows int, f cutter) (*ppl.Windows, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return f(context.Background(), c, ppl.Text{Name: path, Data: raw}, 512, windows)
}

// variant is one row to measure.
type variant struct {
	key   string
	bytes float64 // per key
	cache refmodel.Cache
}

func (b *bench) key(code codec.Kind, bits float64, alloc bits.Alloc, exceptions string) string {
	return fmt.Sprintf("%s\t%s\t%g\t%s\t%s\t%d", b.name, code, bits, alloc, exceptions, b.seed)
}

func (b *bench) point(p string) error {
	cfg := b.c.Config
	shape, err := cfg.Uniform()
	if err != nil {
		return err
	}
	heads := len(cfg.Layers) * shape.KVHeads
	f := strings.Split(p, ":")
	if len(f) == 1 {
		t, err := kvcache.ParseStockType(p)
		if err != nil {
			return err
		}
		cache, err := kvcache.NewLlamaCpp(cfg, kvcache.CacheTypes{K: t, V: gguf.TypeF16, Rotation: true})
		if err != nil {
			return err
		}
		size, err := gguf.RowBytes(t, shape.HeadDim)
		if err != nil {
			return err
		}
		key := b.key(codec.Kind(p), 8*float64(size)/float64(shape.HeadDim), "-", "0")
		if b.done[key] {
			return nil
		}
		return b.measure([]variant{{key, float64(size), cache}})
	}
	if len(f) != 4 {
		return fmt.Errorf("expected code:bits:alloc:exceptions")
	}
	code, alloc := codec.Kind(f[0]), bits.Alloc(f[2])
	perNumber, err := strconv.ParseFloat(f[1], 64)
	if err != nil {
		return err
	}
	var todo []string
	for _, x := range strings.Split(f[3], "+") {
		if !b.done[b.key(code, perNumber, alloc, x)] {
			todo = append(todo, x)
		}
	}
	if len(todo) == 0 {
		return nil
	}
	ctx := context.Background()
	policy := kvcache.Policy{Anchor: 64, Sink: 4}
	o := calibrate.Options{Kinds: []codec.Kind{code}, Bits: perNumber, Policy: policy, Balance: true, Seed: b.seed, Threads: b.threads}
	if code == codec.Frame {
		if o.Signs, err = bits.Allocate(ctx, b.m, b.fit.Tokens, alloc, o.Allocation()); err != nil {
			return err
		}
	}
	fit, err := calibrate.Run(ctx, b.m, b.fit.Tokens, o)
	if err != nil {
		return err
	}
	var variants []variant
	for _, x := range todo {
		digits, plain := strings.CutSuffix(x, "g")
		policy := policy
		if policy.Exceptions, err = strconv.Atoi(digits); err != nil {
			return err
		}
		codes := make([][]*codec.Code, len(cfg.Layers))
		size := 0
		for l, layer := range fit.Layers {
			for _, h := range layer.Heads {
				c := h.Codes[code]
				if plain {
					if c, err = c.WithGain(1); err != nil {
						return err
					}
				}
				codes[l] = append(codes[l], c)
				size += policy.KeyBytes(c)
			}
		}
		cache, err := kvcache.NewCodes(cfg, codes, policy)
		if err != nil {
			return err
		}
		cache.Scale = fit.KeyScale(cfg)
		variants = append(variants, variant{b.key(code, perNumber, alloc, x), float64(size) / float64(heads), cache})
	}
	return b.measure(variants)
}

// measure appends a row for each variant.
func (b *bench) measure(rows []variant) error {
	var variants []*refmodel.Variant
	for _, r := range rows {
		variants = append(variants, &refmodel.Variant{Cache: r.cache})
	}
	res, err := ppl.Compare(context.Background(), b.m, b.text, refmodel.Options{}, &refmodel.Variant{}, variants...)
	if err != nil {
		return err
	}
	for i, d := range res.Divergences {
		_, err := fmt.Fprintf(b.out, "%s\t%.4g\t%.4f\t%.4f\t%.5f\t%.5f\t%.4f\t%d\t%d\n", rows[i].key, rows[i].bytes, d.Ratio, d.RatioErr, d.Mean, d.MeanErr, d.SameTop, b.tokens, len(b.text.Tokens))
		if err != nil {
			return err
		}
	}
	return nil
}
