package command

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/tokenizer"
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
		ArgsUsage: "SRC | ARTIFACT | SRC CONVERTED",
		Description: `Two tasks at several depths of the context: the value of a key in a long list, and a sentence in a
long text. An answer counts if it is exact, as greedy decoding would write it. "lost" counts answers
that are exact with float caches alone. With a model and what it was converted to, both are asked the
same, and compared with the model and float caches. Nothing is written.

` + hubNames + `

Examples:
  phaseconv recall ./SmolLM2-135M --ctx 2048
  phaseconv recall ./SmolLM2-135M smol --ctx 1024 --pairs q4_0/q4_0
  phaseconv recall model.gguf --ctx 8192 --pairs q8_0/q8_0,q4_0/q4_0 --samples 8`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "source", Usage: "what the artifact was made from; it is asked too, and is what both are compared with"},
			&cli.StringFlag{Name: "container", Usage: "gguf or safetensors, when the artifact has both (default: the first)"},
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
	given, err := adviseNames(c)
	if err != nil {
		return err
	}
	if err := checkContainer(c); err != nil {
		return err
	}
	pairs, err := typePairs(c.StringSlice("pairs"))
	if err != nil {
		return err
	}
	on, err := rotation(c)
	if err != nil {
		return err
	}
	for i := range pairs {
		pairs[i].Rotation = on
	}
	text, err := evaluationText(c.String("text"))
	if err != nil {
		return err
	}
	if err := text.Check(); err != nil {
		return err
	}
	names, err := locals(ctx, stderr, given)
	if err != nil {
		return err
	}
	report := showProgress(stderr)
	published, converted, err := adviseModels(ctx, report, c, names, []ppl.Text{text})
	for _, m := range []*checkpoint.Checkpoint{published, converted} {
		if m != nil {
			defer m.Close()
		}
	}
	if err != nil {
		return err
	}
	var groups []recall.Group
	var tk *tokenizer.Tokenizer
	for _, m := range []*checkpoint.Checkpoint{published, converted} {
		if m == nil {
			continue
		}
		printNotes(stderr, m)
		g, own, err := recallGroup(c, m, pairs)
		if err != nil {
			return err
		}
		if tk == nil {
			tk = own
		} else if s := string(text.Data); !slices.Equal(tk.Encode(s, tokenizer.Plain), own.Encode(s, tokenizer.Plain)) {
			return fmt.Errorf("%s and %s cut a text into different tokens; name a model and what it was converted to", names[0], names[1])
		}
		g.Converted = m == converted
		groups = append(groups, g)
	}
	rows, err := recall.Run(ctx, tk, recall.Options{
		Ctx: c.Int("ctx"), Depths: c.FloatSlice("depths"), Samples: c.Int("samples"), Text: string(text.Data),
		Seed: c.Uint64("seed"), Progress: report.Of("asking"),
	}, groups...)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(stdout, rows)
	}
	printRecall(stdout, c.Int("ctx"), rows)
	return nil
}

// recallGroup is what a model is asked with: float caches and those of pairs.
func recallGroup(c *cli.Command, m *checkpoint.Checkpoint, pairs []kvcache.CacheTypes) (
	g recall.Group, tk *tokenizer.Tokenizer, err error,
) {
	if err := ppl.CheckContext(m.Config, c.Int("ctx")); err != nil {
		return g, nil, err
	}
	if tk, err = m.Tokenizer(); err != nil {
		return g, nil, err
	}
	g = recall.Group{
		Model: refmodel.New(m.Config, m, parallel.Threads(c.Int("threads"))), Lanes: []recall.Lane{{Name: "float"}},
	}
	for _, p := range pairs {
		s, err := kvcache.NewLlamaCpp(m.Config, p)
		if err != nil {
			return g, nil, usagef("--pairs: %w", err)
		}
		s.FloatSums = true
		g.Lanes = append(g.Lanes, recall.Lane{Name: s.String(), Cache: s})
	}
	return g, tk, nil
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
	t := newTable("task", "depth", "weights", "cache", "exact", "of", "lost")
	type sum struct{ exact, of, lost int }
	var names []string
	sums := map[string]*sum{}
	for _, r := range rows {
		weights := weightsName(r.Converted)
		t.row(r.Task, fmt.Sprint(r.Depth), weights, r.Cache, fmt.Sprint(r.Exact), fmt.Sprint(r.Samples), fmt.Sprint(r.Lost))
		name := weights + ", " + r.Cache
		if sums[name] == nil {
			sums[name], names = &sum{}, append(names, name)
		}
		s := sums[name]
		s.exact, s.of, s.lost = s.exact+r.Exact, s.of+r.Samples, s.lost+r.Lost
	}
	t.print(w)
	fmt.Fprintln(w)
	for _, n := range names {
		fmt.Fprintf(w, "%s: %d of %d exact, %d lost\n", n, sums[n].exact, sums[n].of, sums[n].lost)
	}
	if s := sums[names[0]]; s.exact == 0 {
		fmt.Fprintln(w, "the model finds nothing with float caches, so that no cache type can lose anything: "+
			"take a shorter context or another model")
	}
}
