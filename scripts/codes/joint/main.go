// Command joint fits joint codes of a checkpoint's keys, values or both once and measures them
// beside the float model, on each text at each context: one row per code and recent window, with
// the divergence of the four quarters of the scored positions.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/phaseconv/phaseconv/convert/bits"
	"github.com/phaseconv/phaseconv/convert/calibrate"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
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
	texts := flag.String("text", "", "texts to measure on, separated by commas")
	tokens := flag.Int("tokens", 12288, "tokens to fit to")
	skip := flag.Int("skip", 0, "bytes of the fitted text to leave out first: another draw of windows")
	contexts := flag.String("ctx", "512", "tokens of a window to measure, and :windows if not 2,048 tokens of them, separated by commas (512,2048:2); windows to fit to are as long as the first, but at most 512")
	list := flag.String("codes", "kv:3", "what is coded and bits per pair of numbers, as --parts and --bits-kv: kv:3,k+v:3,k:1.5; kv:3:s spreads signs by sensitivity, kv:3:g codes every second layer given the one below, kv:3:gs does both, kv:3:g+2 moves two words of 32 signs from the upper layer of each pair to the lower one")
	key := flag.Float64("key-share", 1, "part of the signs that keys are decoded from")
	value := flag.Float64("value-share", 1, "part of the signs that values are decoded from")
	limit := flag.Int("span", 512, "most numbers of a group")
	recents := flag.String("recent", "0,64", "recent tokens that are kept, separated by commas")
	balance := flag.Bool("balance", true, "fold the pair scaling of keys")
	anchor := flag.Int("anchor", 64, "tokens of a block")
	seed := flag.Uint64("seed", 1, "seed of the labels of gradients")
	fisher := flag.Bool("fisher", false, "take the metric from gradients")
	threads := flag.Int("threads", 0, "threads")
	flag.Parse()
	c, err := checkpoint.Open(*model)
	if err != nil {
		return err
	}
	defer c.Close()
	held, err := heldOut(ctx, c, *texts, *contexts)
	if err != nil {
		return err
	}
	length := min(held[0].Ctx, 512)
	cal, err := cut(ctx, c, *fitText, *skip, length, *tokens/length, ppl.TokenizeSpread)
	if err != nil {
		return err
	}
	m := refmodel.New(c.Config, c, *threads)
	var codes []*code
	shares := bits.Shares{Key: *key, Value: *value}
	for _, text := range strings.Split(*list, ",") {
		x, err := newCode(c.Config, text, *limit, shares)
		if err != nil {
			return err
		}
		codes = append(codes, x)
	}
	// All codes in one pass: a layer's groups are those of all codes, one after the other.
	policy := kvcache.Policy{Anchor: *anchor, Sink: 4}
	o := calibrate.Options{Joint: &calibrate.Joint{Fisher: *fisher}, Policy: policy, Balance: *balance, Seed: *seed,
		Threads: *threads}
	for _, x := range codes {
		if x.sensitivity {
			if x.Signs, err = bits.AllotJoint(ctx, m, cal.Tokens, x.Groups, o.Allocation()); err != nil {
				return err
			}
			fmt.Println("#", x.name, "signs", x.Signs)
		}
	}
	o.Joint.Shares = shares
	for l := range c.Config.Layers {
		var parts [][]codec.Part
		var signs []int
		var given []bool
		for _, x := range codes {
			for i := range x.Parts[l] {
				given = append(given, x.IsGiven(l, i))
			}
			parts, signs = append(parts, x.Parts[l]...), append(signs, x.Signs[l]...)
		}
		o.Joint.Parts, o.Joint.Signs = append(o.Joint.Parts, parts), append(o.Joint.Signs, signs)
		o.Joint.Given = append(o.Joint.Given, given)
	}
	begin := time.Now()
	fitted, err := calibrate.Run(ctx, m, cal.Tokens, o)
	if err != nil {
		return err
	}
	fmt.Printf("# %s, %d tokens, skip %d, fisher %v, balance %v, anchor %d, seed %d, shares %v: fitted in %.0f s\n", c.Name(),
		len(cal.Tokens)*cal.Ctx, *skip, *fisher, *balance, *anchor, *seed, shares, time.Since(begin).Seconds())
	var variants []*refmodel.Variant
	var names []string
	at := make([]int, len(c.Config.Layers))
	for _, x := range codes {
		groups := make([][]*codec.Group, len(at))
		for l, all := range fitted.Groups() {
			n := len(x.Parts[l])
			groups[l] = all[at[l] : at[l]+n]
			at[l] += n
		}
		for _, r := range strings.Split(*recents, ",") {
			p := policy
			if p.Recent, err = strconv.Atoi(r); err != nil {
				return err
			}
			cache, err := kvcache.NewGroups(c.Config, groups, p)
			if err != nil {
				return err
			}
			cache.Scale = fitted.KeyScale(c.Config)
			variants = append(variants, &refmodel.Variant{Cache: cache})
			bytes := kvcache.GroupBytes(c.Config, groups, p)
			names = append(names, fmt.Sprintf("%-8s\trecent %-3s\t%d of %d bytes", x.name, r, bytes.KCode, bytes.KF16))
		}
	}
	for _, w := range held {
		if err := measure(ctx, m, w, names, len(variants)/len(codes), variants); err != nil {
			return err
		}
	}
	return nil
}

// measure prints a row for each variant on the windows w.
// They come code by code, each with so many recent windows, and are put beside those of the first code.
func measure(ctx context.Context, m *refmodel.Model, w *heldText, names []string, recents int,
	v []*refmodel.Variant) error {
	begin := time.Now()
	res, err := ppl.Compare(ctx, m, w.Windows, refmodel.Options{}, &refmodel.Variant{}, v...)
	if err != nil {
		return err
	}
	fmt.Printf("# %s, %d windows of %d, %.0f s\n", w.name, len(w.Tokens), w.Ctx, time.Since(begin).Seconds())
	for i, name := range names {
		d := &res.Divergences[i]
		first := res.Divergences[i%recents].KLD
		less := make([]float64, len(first))
		for t := range less {
			less[t] = d.KLD[t] - first[t]
		}
		diff, diffErr := ppl.MeanErr(less)
		fmt.Printf("%s\tKLD %.4f ± %.4f\tbeside the first %+.4f ± %.4f\tratio %.4f ± %.4f", name, d.Mean, d.MeanErr, diff, diffErr, d.Ratio,
			d.RatioErr)
		for _, b := range ppl.Bands(d, w.Windows, 4) {
			fmt.Printf("\t%.4f", b.KLD)
		}
		fmt.Println()
	}
	return nil
}

// A heldText is windows of a text that nothing was fitted to.
type heldText struct {
	name string
	*ppl.Windows
}

// heldOut cuts every text at every context, the first context first.
func heldOut(ctx context.Context, c *checkpoint.Checkpoint, texts, contexts string) ([]*heldText, error) {
	var held []*heldText
	for _, entry := range strings.Split(contexts, ",") {
		length, count, given := strings.Cut(entry, ":")
		n, err := strconv.Atoi(length)
		if err != nil {
			return nil, err
		}
		chunks := max(1, 2048/n)
		if given {
			if chunks, err = strconv.Atoi(count); err != nil {
				return nil, err
			}
		}
		for _, text := range strings.Split(texts, ",") {
			w, err := cut(ctx, c, text, 0, n, chunks, ppl.Tokenize)
			if err != nil {
				return nil, err
			}
			held = append(held, &heldText{filepath.Base(text), w})
		}
	}
	return held, nil
}

// A code is what is coded together, and with how many signs.
type code struct {
	name        string
	sensitivity bool // signs are spread by it, else evenly
	*bits.Groups
}

// newCode reads what is coded and the bits per pair of numbers, or per number of one side, as
// convert has them.
func newCode(cfg *family.Config, text string, limit int, shares bits.Shares) (*code, error) {
	what, number, _ := strings.Cut(text, ":")
	number, how, _ := strings.Cut(number, ":")
	how, shift, _ := strings.Cut(how, "+")
	x := &code{name: text, sensitivity: strings.Contains(how, "s")}
	if strings.Trim(how, "gs") != "" {
		return nil, fmt.Errorf("code %s: %q is no way to spread signs", text, how)
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return nil, err
	}
	x.Groups, err = bits.JointGroups(cfg, bits.GroupOptions{Parts: bits.Parts(what), Bits: n, Span: limit,
		Pairs: strings.Contains(how, "g"), Shares: shares})
	if err == nil && shift != "" {
		n, err = strconv.ParseFloat(shift, 64)
		x.shift(n)
	}
	return x, err
}

// shift gives the lower group of each pair some words of signs of the upper one.
func (c *code) shift(words float64) {
	for l, signs := range c.Signs {
		for i := range signs {
			if c.IsGiven(l, i) {
				both := (signs[i] + c.Signs[l-1][i]) / 32
				lower := int(float64(both)/2 + words)
				c.Signs[l-1][i], signs[i] = 32*lower, 32*(both-lower)
			}
		}
	}
}

type cutter func(ctx context.Context, c *checkpoint.Checkpoint, t ppl.Text, n, chunks int) (*ppl.Windows, error)

func cut(ctx context.Context, c *checkpoint.Checkpoint, path string, skip, n, chunks int, f cutter) (*ppl.Windows,
	error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return f(ctx, c, ppl.Text{Name: path, Data: raw[min(skip, len(raw)):]}, n, chunks)
}
