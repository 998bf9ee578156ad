// Command joint fits joint codes of a checkpoint's keys, values or both and measures them beside
// the float model: one row per number of bits and recent window.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/phaseconv/phaseconv/convert/calibrate"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "joint:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	model := flag.String("model", "", "checkpoint")
	fitText := flag.String("fit", "", "text to fit to")
	text := flag.String("text", "", "text to measure on")
	tokens := flag.Int("tokens", 12288, "tokens to fit to")
	skip := flag.Int("skip", 0, "bytes of the fitted text to leave out first: another draw of windows")
	window := flag.Int("ctx", 512, "tokens of a window to measure")
	chunks := flag.Int("chunks", 4, "windows to measure")
	bits := flag.String("bits", "1", "signs per number, separated by commas")
	what := flag.String("parts", "kv", "k, v, or kv")
	limit := flag.Int("span", 512, "most numbers of a group")
	recents := flag.String("recent", "0,64", "recent tokens that are kept, separated by commas")
	balance := flag.Bool("balance", true, "fold the pair scaling of keys")
	threads := flag.Int("threads", 0, "threads")
	flag.Parse()
	c, err := checkpoint.Open(*model)
	if err != nil {
		return err
	}
	defer c.Close()
	cal, err := cut(ctx, c, *fitText, *skip, 512, *tokens/512, ppl.TokenizeSpread)
	if err != nil {
		return err
	}
	held, err := cut(ctx, c, *text, 0, *window, *chunks, ppl.Tokenize)
	if err != nil {
		return err
	}
	m := refmodel.New(c.Config, c, *threads)
	for _, one := range strings.Split(*bits, ",") {
		b, err := strconv.ParseFloat(one, 64)
		if err != nil {
			return err
		}
		policy := kvcache.Policy{Anchor: 64, Sink: 4}
		o := calibrate.Options{Joint: &calibrate.Joint{}, Policy: policy, Balance: *balance, Seed: 1, Threads: *threads}
		bytes := 0
		for l := range c.Config.Layers {
			y := &c.Config.Layers[l]
			spans, err := codec.Spans(y.KVHeads, y.HeadDim, y.HeadDim, *limit, strings.Contains(*what, "k"),
				strings.Contains(*what, "v"))
			if err != nil {
				return err
			}
			var signs []int
			for _, parts := range spans {
				n := int(b*float64(len(parts)*y.HeadDim)/32+0.5) * 32
				signs = append(signs, n)
				bytes += n/8 + 2
			}
			o.Joint.Parts, o.Joint.Signs = append(o.Joint.Parts, spans), append(o.Joint.Signs, signs)
		}
		begin := time.Now()
		fitted, err := calibrate.Run(ctx, m, cal.Tokens, o)
		if err != nil {
			return err
		}
		seconds := time.Since(begin).Seconds()
		var variants []*refmodel.Variant
		for _, r := range strings.Split(*recents, ",") {
			p := policy
			if p.Recent, err = strconv.Atoi(r); err != nil {
				return err
			}
			cache, err := kvcache.NewGroups(c.Config, fitted.Groups(), p)
			if err != nil {
				return err
			}
			cache.Scale = fitted.KeyScale(c.Config)
			variants = append(variants, &refmodel.Variant{Cache: cache})
		}
		res, err := ppl.Compare(ctx, m, held, refmodel.Options{}, &refmodel.Variant{}, variants...)
		if err != nil {
			return err
		}
		for i, r := range strings.Split(*recents, ",") {
			d := &res.Divergences[i]
			fmt.Printf("%s\t%s\tbits %g\t%d bytes a token\trecent %s\tKLD %.4f ± %.4f\tratio %.4f\tfit %.1f s\n", c.Name(), *what, b,
				bytes, r, d.Mean, d.MeanErr, d.Ratio, seconds)
		}
	}
	return nil
}

type cutter func(ctx context.Context, c *checkpoint.Checkpoint, t ppl.Text, n, chunks int) (*ppl.Windows, error)

func cut(ctx context.Context, c *checkpoint.Checkpoint, path string, skip, n, chunks int, f cutter) (*ppl.Windows, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return f(ctx, c, ppl.Text{Name: path, Data: raw[min(skip, len(raw)):]}, n, chunks)
}
