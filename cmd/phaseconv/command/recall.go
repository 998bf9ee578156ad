package command

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/recall"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

func recallCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "recall",
		Usage:     "ask for what stands far back in a context, with float caches and with cache types",
		ArgsUsage: "SRC",
		Description: `Two tasks at several depths of the context: the value of a key in a long list, and a sentence in a
long text. An answer counts if it is exact, as greedy decoding would write it. "lost" counts answers
that are exact with float caches alone. Nothing is written.

` + hubNames + `

Examples:
  phaseconv recall ./SmolLM2-135M --ctx 2048
  phaseconv recall model.gguf --ctx 8192 --pairs q8_0/q8_0,q4_0/q4_0 --samples 8`,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "ctx", Usage: "context in tokens", Value: 2048},
			&cli.StringSliceFlag{Name: "pairs", Usage: "pairs K/V to measure", Value: []string{"q8_0/q8_0", "q4_0/q4_0"}},
			&cli.FloatSliceFlag{Name: "depths", Usage: "where it stands: 0 for the beginning, 1 for the end",
				Value: []float64{0, 0.25, 0.5, 0.75, 1}},
			&cli.IntFlag{Name: "samples", Usage: "questions of each task at each depth", Value: 4},
			&cli.StringFlag{Name: "text", Usage: "long text of the second task", DefaultText: "embedded:persuasion"},
			rotationFlag(), seedFlag(), threadsFlag(), jsonFlag(),
		},
		Action: func(ctx context.Context, c *cli.Command) error { return runRecall(ctx, c, stdout, stderr) },
	}
}

func runRecall(ctx context.Context, c *cli.Command, stdout, stderr io.Writer) error {
	src, err := one(c, "source")
	if err != nil {
		return err
	}
	on, err := rotation(c)
	if err != nil {
		return err
	}
	pairs, err := typePairs(c.StringSlice("pairs"))
	if err != nil {
		return err
	}
	text, err := evaluationText(c.String("text"))
	if err != nil {
		return err
	}
	if err := text.Check(); err != nil {
		return err
	}
	ck, _, err := openSource(ctx, stderr, src)
	if err != nil {
		return err
	}
	defer ck.Close()
	if err := ppl.CheckContext(ck.Config, c.Int("ctx")); err != nil {
		return err
	}
	tk, err := ck.Tokenizer()
	if err != nil {
		return err
	}
	lanes := []recall.Lane{{Name: "float"}}
	for _, p := range pairs {
		p.Rotation = on
		s, err := kvcache.NewLlamaCpp(ck.Config, p)
		if err != nil {
			return usagef("--pairs: %w", err)
		}
		s.FloatSums = true
		lanes = append(lanes, recall.Lane{Name: s.String(), Cache: s})
	}
	rows, err := recall.Run(ctx, refmodel.New(ck.Config, ck, parallel.Threads(c.Int("threads"))), tk, recall.Options{
		Ctx: c.Int("ctx"), Depths: c.FloatSlice("depths"), Samples: c.Int("samples"), Text: string(text.Data),
		Seed: c.Uint64("seed"), Progress: showProgress(stderr).Of("asking"),
	}, lanes...)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(stdout, rows)
	}
	printRecall(stdout, c.Int("ctx"), rows)
	return nil
}

// typePairs reads pairs of cache types K/V.
func typePairs(names []string) ([]kvcache.CacheTypes, error) {
	var out []kvcache.CacheTypes
	for _, pair := range names {
		k, v, ok := strings.Cut(pair, "/")
		if !ok {
			return nil, usagef("--pairs: %q is not of the form K/V, such as q8_0/q4_0", pair)
		}
		var p kvcache.CacheTypes
		var err error
		if p.K, err = cacheType(k); err != nil {
			return nil, err
		}
		if p.V, err = cacheType(v); err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func printRecall(w io.Writer, ctx int, rows []recall.Row) {
	fmt.Fprintf(w, "exact answers at a context of %d tokens\n\n", ctx)
	t := newTable("task", "depth", "cache", "exact", "of", "lost")
	for _, r := range rows {
		t.row(r.Task, fmt.Sprint(r.Depth), r.Cache, fmt.Sprint(r.Exact), fmt.Sprint(r.Samples), fmt.Sprint(r.Lost))
	}
	t.print(w)
	type sum struct{ exact, of, lost int }
	var names []string
	sums := map[string]*sum{}
	for _, r := range rows {
		if sums[r.Cache] == nil {
			sums[r.Cache], names = &sum{}, append(names, r.Cache)
		}
		s := sums[r.Cache]
		s.exact, s.of, s.lost = s.exact+r.Exact, s.of+r.Samples, s.lost+r.Lost
	}
	fmt.Fprintln(w)
	for _, n := range names {
		fmt.Fprintf(w, "%s: %d of %d exact, %d lost\n", n, sums[n].exact, sums[n].of, sums[n].lost)
	}
	if s := sums[names[0]]; s.exact == 0 {
		fmt.Fprintln(w, "the model finds nothing with float caches, so that no cache type can lose anything: "+
			"take a shorter context or another model")
	}
}
