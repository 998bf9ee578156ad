package command

import (
	"context"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/convert/bits"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

func verifyCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "check an artifact's contract and measure it on held-out text",
		ArgsUsage: "ARTIFACT",
		Description: `ARTIFACT is a folder that "phaseconv convert" wrote.

Examples:
  phaseconv verify smol
  phaseconv verify smol --source ./SmolLM2-135M --text test.txt --chunks 16
  phaseconv verify smol --engine llama --source SmolLM2-135M.gguf   # through stock llama.cpp
  phaseconv verify smol --json > verify.json`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "source",
				Usage: "what the artifact was made from; adds the proof that the function is preserved"},
			&cli.StringFlag{Name: "text", Usage: "held-out text (default: an embedded one)"},
			&cli.StringFlag{Name: "container", Usage: "gguf or safetensors, when the artifact has both (default: the first)"},
			&cli.IntFlag{Name: "ctx", Usage: "context length", Value: 512},
			&cli.IntFlag{Name: "chunks", Usage: "windows to measure, 0 for all", Value: 4},
			&cli.IntFlag{Name: "sink", Usage: "keys at the start that stay F16 (default: the artifact's)", Value: -1, HideDefault: true},
			&cli.IntFlag{Name: "recent", Usage: "latest keys that stay F16 (default: the artifact's)", Value: -1,
				HideDefault: true},
			&cli.StringFlag{Name: "code", Usage: "measure a code that needs no calibration instead: raw, srht or random"},
			&cli.BoolFlag{Name: "kernels", Usage: "score coded keys with the decode kernels, as a runtime does (slower)"},
			&cli.StringFlag{Name: "cache-type-k",
				Usage: "also measure a stock runtime with K in this type: " + strings.Join(kvcache.StockTypes(), ", ")},
			&cli.StringFlag{Name: "cache-type-v", Usage: "the same for V (default: f16)"},
			rotationFlag(),
			reportFlag(), seedFlag(), threadsFlag(), jsonFlag(),
		}, engineFlags(engine.Own)...),
		Action: func(ctx context.Context, c *cli.Command) error { return runVerify(ctx, c, stdout, stderr) },
	}
}

func runVerify(ctx context.Context, c *cli.Command, stdout, stderr io.Writer) error {
	dir, err := one(c, "artifact")
	if err != nil {
		return err
	}
	o := verify.Options{
		Ctx: c.Int("ctx"), Chunks: c.Int("chunks"), Sink: c.Int("sink"), Recent: c.Int("recent"),
		Code:    codec.Kind(c.String("code")),
		Kernels: c.Bool("kernels"),
		Seed:    c.Uint64("seed"), Threads: c.Int("threads"), Progress: showProgress(stderr),
	}
	if o.Text, err = evaluationText(c.String("text")); err != nil {
		return err
	}
	if o.CacheTypes, err = stockTypes(c); err != nil {
		return err
	}
	if err := checkContainer(c); err != nil {
		return err
	}
	on, err := rotation(c)
	if err != nil {
		return err
	}
	e, err := chosenEngine(c, on)
	if err != nil {
		return err
	}
	if e.settleArtifact(dir); e.Kind == engine.Llama {
		if o.Kernels {
			return usagef("--kernels is for --engine own")
		}
		engines, err := e.engines(ctx, stderr)
		if err != nil {
			return err
		}
		defer engines.Close()
		o.Engines, o.Notice = engines, notes(stderr)
	}
	if err := writable(c, "report"); err != nil {
		return err
	}
	checks := &contract.Checker{Progress: o.Progress}
	a, err := contract.Open(ctx, dir, c.String("container"), checks)
	if err != nil {
		return err
	}
	var res *spec.VerifyJSON
	if a == nil {
		res = &spec.VerifyJSON{Contract: checks.Checks}
	} else {
		defer a.Close()
		if src := c.String("source"); src != "" {
			if src, err = local(ctx, stderr, src); err != nil {
				return err
			}
			if o.Source, err = checkpoint.OpenAs(src, a.Manifest.Graph); err != nil {
				return err
			}
			defer o.Source.Close()
		}
		if res, err = verify.Artifact(ctx, a, checks, o); err != nil {
			return err
		}
	}
	if path := c.String("report"); path != "" {
		if err := verifyReport(path, dir, res); err != nil {
			return err
		}
	}
	return show(c, stdout, res, res.OK, func() { printVerify(stdout, res) })
}

// stockTypes reads the cache types to measure, nil if none is named.
func stockTypes(c *cli.Command) (*kvcache.CacheTypes, error) {
	on, err := rotation(c)
	if err != nil {
		return nil, err
	}
	s := &kvcache.CacheTypes{Rotation: on}
	if s.K, err = cacheType(c.String("cache-type-k")); err != nil {
		return nil, usagef("--cache-type-k: %w", err)
	}
	if s.V, err = cacheType(c.String("cache-type-v")); err != nil {
		return nil, usagef("--cache-type-v: %w", err)
	}
	if !c.IsSet("cache-type-k") && !c.IsSet("cache-type-v") {
		return nil, nil
	}
	if s.K.CacheOnly() {
		s.Rotation = false // only llama.cpp has it
	}
	return s, nil
}

func printContract(w io.Writer, checks []spec.Check) {
	fmt.Fprintln(w, "contract")
	for _, c := range checks {
		mark := "ok    "
		if !c.OK {
			mark = "FAILED"
		}
		say(w, "  %s  %s: %s\n", mark, c.Check, c.Detail)
	}
}

// partsText says what joint codes hold.
func partsText(parts string) string {
	switch bits.Parts(parts) {
	case bits.PartsKeys:
		return "keys of a layer"
	case bits.PartsValues:
		return "values of a layer"
	}
	return "keys and values"
}

// printVerify shows a verification; statistics carry llama-perplexity's names.
func printVerify(w io.Writer, v *spec.VerifyJSON) {
	printContract(w, v.Contract)
	if len(v.Layers) > 0 {
		fmt.Fprintln(w)
		printBeta(w, v.Layers)
	}
	if p := v.PPL; p != nil {
		k := v.KLD
		code, what := p.Code, "keys"
		if v.Bytes != nil && v.Bytes.Parts != "" {
			code, what = codeJoint, partsText(v.Bytes.Parts)
		}
		by := "decoded " + what
		if p.Kernels {
			by = "decode kernels"
		}
		say(w, "\n%s, %d windows of %d tokens, %d tokens scored, code %s, anchor %d, sink %d, recent %d, %s\n",
			v.Text.Name, p.Chunks, p.Ctx, p.Tokens, code, p.Anchor, p.Sink, p.Recent, by)
		fmt.Fprintf(w, "  Mean PPL(base)        : %10.4f ± %8.4f   float keys\n", p.Float, p.FloatErr)
		fmt.Fprintf(w, "  Mean PPL(Q)           : %10.4f ± %8.4f   %s\n", p.OneBit, p.OneBitErr, "coded "+what)
		fmt.Fprintf(w, "  Mean PPL(Q)/PPL(base) : %10.4f ± %8.4f\n", p.Ratio, p.RatioErr)
		fmt.Fprintf(w, "  Mean    KLD           : %10.6f ± %8.6f\n", k.Mean, k.MeanErr)
		for _, b := range v.Positions {
			fmt.Fprintf(w, "    at %6d to %-6d   : %10.6f ± %8.6f\n", b.From, b.To-1, b.KLD, b.KLDErr)
		}
		fmt.Fprintf(w, "  Maximum KLD           : %10.6f\n", k.Max)
		fmt.Fprintf(w, "  99.0%%   KLD           : %10.6f\n", k.P99)
		fmt.Fprintf(w, "  Median  KLD           : %10.6f\n", k.Median)
		fmt.Fprintf(w, "  RMS Δp                : %9.3f %%\n", 100*k.DeltaPRMS)
		fmt.Fprintf(w, "  Same top p            : %9.3f ± %.3f %%\n", 100*k.SameTop, 100*k.SameTopErr)
	}
	if v.Engine != nil {
		fmt.Fprintf(w, "  computed by %s\n", engineName(v.Engine))
	}
	if k := v.Stock; k != nil {
		fmt.Fprintf(w, "\nstock runtime with K %s, V %s: %d bytes a token; Hadamard K %d, V %d (0: none); compared with the %s, F16 caches%s\n",
			k.KType, k.VType, k.BytesPerToken, k.RotationK, k.RotationV, k.Base, roundedNote(k.RoundedInputs))
		fmt.Fprintf(w, "  Mean PPL(Q)           : %10.4f ± %8.4f\n", k.PPL, k.PPLErr)
		fmt.Fprintf(w, "  Mean PPL(Q)/PPL(base) : %10.4f ± %8.4f\n", k.PPLRatio, k.PPLRatioErr)
		fmt.Fprintf(w, "  Mean    KLD           : %10.6f ± %8.6f\n", k.KLD.Mean, k.KLD.MeanErr)
		fmt.Fprintf(w, "  Same top p            : %9.3f ± %.3f %%\n", 100*k.KLD.SameTop, 100*k.KLD.SameTopErr)
	}
	if f := v.Function; f != nil {
		fmt.Fprintln(w, "\nfunction preserved (source against artifact, float keys)")
		fmt.Fprintf(w, "                             artifact   re-rounding floor\n")
		fmt.Fprintf(w, "  max |delta logit|        %10.6f          %10.6f\n", f.MaxAbsDLogit, f.FloorMaxAbsDLogit)
		fmt.Fprintf(w, "  Mean    KLD              %10.2e          %10.2e\n", f.KLDMean, f.FloorKLDMean)
	}
	if b := v.Bytes; b != nil {
		whole := b.Parts != "" // bytes are of keys and values
		if whole {
			fmt.Fprintf(w, "\nkeys and values per token: %d bytes as F16, %d bytes coded (%.2fx); sidecar %d bytes once\n", b.KVF16,
				b.KVCode, float64(b.KVF16)/float64(b.KVCode), b.Sidecar)
		} else {
			fmt.Fprintf(w, "\nkeys per token: %d bytes as F16, %d bytes coded (%.2fx); sidecar %d bytes once\n", b.KF16, b.KCode,
				float64(b.KF16)/float64(b.KCode), b.Sidecar)
		}
		var ns []int
		for k := range b.EffectiveBits {
			n, _ := strconv.Atoi(k)
			ns = append(ns, n)
		}
		sort.Ints(ns)
		fmt.Fprint(w, "effective bits per number:")
		for _, n := range ns {
			fmt.Fprintf(w, " %.3f at %d,", b.EffectiveBits[strconv.Itoa(n)], n)
		}
		fmt.Fprintln(w, map[bool]string{false: " sink and recent keys included", true: " sink and recent tokens included"}[whole])
	}
	if !v.OK {
		fmt.Fprintln(w, "\nNOT VERIFIED")
	}
}

// maxHeadRows is how many rows of heads are printed before layers are averaged.
const maxHeadRows = 32

// printBeta shows the audit: each head of a small model, layer means of a large one.
func printBeta(w io.Writer, layers []spec.Layer) {
	fmt.Fprintln(w, "beta on held-out keys, cos1bit (mean cosine of a key and its code; Gaussian floor 0.798)")
	t := newTable("layer", "head", "raw", "cen", "srht", "random", "learned", "delta", "code", "train", "tokens/dim")
	cells := func(l, h string, rows []spec.Layer) {
		get := func(f func(*spec.Layer) *float64) string {
			var s float64
			for i := range rows {
				p := f(&rows[i])
				if p == nil {
					return "-"
				}
				s += *p
			}
			return fmt.Sprintf("%.4f", s/float64(len(rows)))
		}
		var per float64
		for _, r := range rows {
			per += r.TokensPerDim / float64(len(rows))
		}
		t.row(l, h,
			get(func(r *spec.Layer) *float64 { return r.Cos1bit.Raw }),
			get(func(r *spec.Layer) *float64 { return r.Cos1bit.Cen }),
			get(func(r *spec.Layer) *float64 { return r.Cos1bit.SRHT }),
			get(func(r *spec.Layer) *float64 { return r.Cos1bit.Random }),
			get(func(r *spec.Layer) *float64 { return r.Cos1bit.Learned }), get(func(r *spec.Layer) *float64 { return r.Delta }),
			get(func(r *spec.Layer) *float64 { return r.Cos1bit.Code }),
			get(func(r *spec.Layer) *float64 { return r.TrainCos1bit }),
			fmt.Sprintf("%.0f", per))
	}
	if len(layers) <= maxHeadRows {
		for i := range layers {
			cells(fmt.Sprint(layers[i].Layer), fmt.Sprint(layers[i].Head), layers[i:i+1])
		}
	} else {
		for i := 0; i < len(layers); {
			j := i
			for j < len(layers) && layers[j].Layer == layers[i].Layer {
				j++
			}
			cells(fmt.Sprint(layers[i].Layer), "mean", layers[i:j])
			i = j
		}
	}
	cells("all", "mean", layers)
	t.print(w)
}
