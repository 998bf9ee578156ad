package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/tokenizer"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify"
	"github.com/phaseconv/phaseconv/verify/backends"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/progress"
	"github.com/phaseconv/phaseconv/verify/texts"
)

func adviseCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "advise",
		Usage:     "find the smallest KV cache types of a stock runtime that a model can do with",
		ArgsUsage: "SRC | ARTIFACT | SRC CONVERTED",
		Description: `Measures llama.cpp's cache types, and names the smallest pair below the gate that
runs on the backend, with lines to paste for llama.cpp, Ollama and LM Studio, and with a
conversion to try for a smaller one. Nothing is written.

Of each context the second half is scored. Sizes are those of the whole cache as
llama.cpp allocates it for one sequence of that context. The exit code is 1 where no pair
smaller than F16 caches passes (with two models: of the converted one).

` + hubToo + `

Examples:
  phaseconv advise model.gguf
  phaseconv advise ./SmolLM2-135M --ctx 512,4096 --max-kld 0.01
  phaseconv advise model.gguf --text kinds             # chat, code, prose, non-Latin and a novel, and a table of all
  phaseconv advise model.gguf --text chat.jsonl --text code.txt
  phaseconv advise model.gguf --backend cuda --ctx 512,8192,32768 --text long.txt
  phaseconv advise smol --source ./SmolLM2-135M --json
  phaseconv advise model.gguf --pairs q8_0/q8_0,q8_0/q4_0
  phaseconv advise gpt-oss-20b-mxfp4.gguf --engine llama --devices CUDA0`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "source", Usage: "what the artifact was made from; it is measured too, and is what both are compared with"},
			&cli.StringFlag{Name: "container", Usage: "gguf or safetensors, when the artifact has both (default: the first)"},
			&cli.GenericFlag{
				Name: "text", Value: &paths{},
				Usage: "held-out text, or chat.jsonl with messages, which the model's chat template renders; given again, " +
					"each is measured by itself; kinds stands for the texts that come with the program: embedded:chat, " +
					"embedded:code, embedded:prose, embedded:nonlatin, embedded:persuasion (a novel; the default: embedded:chat for a model with a chat template, " +
					"else embedded:persuasion)",
			},
			&cli.IntSliceFlag{Name: "ctx", Usage: "context lengths", Value: []int{512, 2048}},
			&cli.IntFlag{Name: "chunks", Usage: "windows of the shortest context, 0 for all; longer ones get as many tokens", Value: 4},
			&cli.StringFlag{
				Name: "backend", Value: string(backends.Any),
				Usage: "where the pair has to run: cpu, cuda, metal, vulkan, rocm (default builds), or any, which is all of them",
			},
			&cli.StringFlag{
				Name: "runtime", Value: "llama.cpp",
				Usage: "llama.cpp, or mlx: mlx-lm's caches of 8 and 4 bits in affine groups of 64 (mlx8, mlx4), without rotation",
			},
			&cli.StringFlag{
				Name: "split-mode", Value: "layer",
				Usage: "llama.cpp's --split-mode: none, layer, row or tensor; tensor takes no quantised cache",
			},
			&cli.FloatFlag{Name: "max-kld", Usage: "the gate: largest mean KLD, in nats per token", Value: 0.02},
			&cli.StringSliceFlag{Name: "types", Usage: "cache types to choose from: " + strings.Join(kvcache.StockTypes(), ", ")},
			&cli.StringSliceFlag{Name: "pairs", Usage: "measure these pairs K/V instead of searching"},
			rotationFlag(),
			&cli.BoolFlag{Name: "float-inputs", Usage: "do not round the inputs of matrix products as llama.cpp's CPU backend does for a GGUF file's types"},
			&cli.BoolFlag{Name: "half-sums", Usage: "sum values in F16 where llama.cpp's CPU backend does (V f16, K another type); slow"},
			threadsFlag(), jsonFlag(),
		}, engineFlags(engine.Own)...),
		Action: func(ctx context.Context, c *cli.Command) error { return runAdvise(ctx, c, stdout, stderr) },
	}
}

// paths are the values of an option that may be given again. Unlike those of a slice flag they are
// not cut at commas, which names of files may have.
type paths []string

func (p *paths) Set(s string) error { *p = append(*p, s); return nil }
func (p *paths) String() string     { return strings.Join(*p, " ") }
func (p *paths) Get() any           { return p }

func rotationFlag() cli.Flag {
	return &cli.StringFlag{Name: "cache-rotation", Usage: "llama.cpp's attention rotation of quantised caches, on or off (LLAMA_ATTN_ROT_DISABLE=1)", Value: "on"}
}

func rotation(c *cli.Command) (bool, error) {
	switch s := c.String("cache-rotation"); s {
	case "on", "off":
		return s == "on", nil
	default:
		return false, usagef("--cache-rotation is on or off, not %q", s)
	}
}

// cacheType reads a cache type; "" gives F16, llama.cpp's default.
func cacheType(name string) (gguf.Type, error) {
	if name == "" {
		return gguf.TypeF16, nil
	}
	t, err := kvcache.ParseStockType(name)
	if err != nil {
		return 0, usagef("%w", err)
	}
	return t, nil
}

// adviseOptions reads what the command line says of the measurements.
func adviseOptions(c *cli.Command, stderr io.Writer) (verify.AdviseOptions, error) {
	o := verify.AdviseOptions{
		Ctx: c.IntSlice("ctx"), Chunks: c.Int("chunks"), MaxKLD: c.Float("max-kld"), HalfSums: c.Bool("half-sums"),
		FloatInputs: c.Bool("float-inputs"), Threads: c.Int("threads"), Progress: showProgress(stderr),
	}
	if !(o.MaxKLD >= 0) || math.IsInf(o.MaxKLD, 1) {
		return o, usagef("--max-kld is %g; a divergence is a number that is not negative", o.MaxKLD)
	}
	var err error
	if o.Rotation, err = rotation(c); err != nil {
		return o, err
	}
	if o.Where.Backend, err = backends.Parse(c.String("backend")); err != nil {
		return o, usagef("--backend: %w", err)
	}
	switch s := c.String("runtime"); s {
	case "llama.cpp":
	case "mlx":
		if f := firstSet(c, "backend", "split-mode", "cache-rotation", "engine"); f != "" {
			return o, usagef("--%s is for llama.cpp, not for --runtime mlx", f)
		}
		o.Where.Backend, o.Rotation = backends.MLX, false
	default:
		return o, usagef("--runtime is llama.cpp or mlx, not %q", s)
	}
	switch s := c.String("split-mode"); s {
	case "none", "layer", "row", "tensor":
		o.Where.TensorSplit = s == "tensor"
	default:
		return o, usagef("--split-mode is none, layer, row or tensor, not %q", s)
	}
	err = adviseLists(c, &o)
	return o, err
}

func runAdvise(ctx context.Context, c *cli.Command, stdout, stderr io.Writer) error {
	o, err := adviseOptions(c, stderr)
	if err != nil {
		return err
	}
	if err := checkContainer(c); err != nil {
		return err
	}
	e, err := chosenEngine(c, o.Rotation)
	if err != nil {
		return err
	}
	given, err := adviseNames(c)
	if err != nil {
		return err
	}
	paths, err := locals(ctx, stderr, given)
	if err != nil {
		return err
	}
	if e.settle(paths...); e.Kind != engine.Own {
		return adviseWithLlama(ctx, c, e, paths, o, stdout, stderr)
	}
	published, converted, err := adviseModels(ctx, o.Progress, c, paths, o.Texts)
	for _, m := range []*checkpoint.Checkpoint{published, converted} {
		if m != nil {
			defer m.Close()
		}
	}
	if err != nil {
		return err
	}
	if len(o.Texts) == 0 {
		var vocabs []*tokenizer.Vocab
		for _, m := range []*checkpoint.Checkpoint{published, converted} {
			if m != nil {
				v, _ := m.Vocab()
				vocabs = append(vocabs, v)
			}
		}
		o.Texts, o.SkipShort = defaultTexts(c, stderr, vocabs...), true
	}
	if !c.IsSet("ctx") {
		o.Ctx = within(o.Ctx, published, converted)
	}
	if published == nil {
		printNotes(stderr, converted)
	} else {
		printNotes(stderr, published)
	}
	if published != nil {
		o.Source, o.Model = given[0], modelFile(published)
		if o.Where.Backend == backends.MLX {
			o.Model = given[0]
		}
	}
	if converted != nil {
		o.ConvertedModel = modelFile(converted)
		if o.Where.Backend == backends.MLX {
			o.ConvertedModel = paths[len(paths)-1]
		}
	}
	res, err := verify.Advise(ctx, published, converted, o)
	if err != nil {
		return err
	}
	return show(c, stdout, res, res.Passed, func() { printAdvise(stdout, res) })
}

// adviseWithLlama measures GGUF files with stock llama.cpp.
func adviseWithLlama(ctx context.Context, c *cli.Command, e engineChoice, paths []string, o verify.AdviseOptions,
	stdout, stderr io.Writer,
) error {
	if f := firstSet(c, "float-inputs", "half-sums"); f != "" {
		return usagef("--%s is for --engine own; llama.cpp computes as it does", f)
	}
	files, err := ggufFiles(paths)
	if err != nil {
		return err
	}
	w, models, err := e.load(ctx, o.Progress, stderr, files...)
	if err != nil {
		return err
	}
	defer w.Close()
	var published, converted engine.Engine
	published, o.Source, o.Model = models[0], files[0], files[0]
	if len(models) == 2 {
		converted, o.ConvertedModel = models[1], files[1]
	}
	if len(o.Texts) == 0 {
		v, _ := checkpoint.GGUFVocab(files[0])
		o.Texts, o.SkipShort = defaultTexts(c, stderr, v), true
	}
	if !c.IsSet("ctx") {
		own := models[0].Facts.Context
		o.Ctx = slices.DeleteFunc(o.Ctx, func(n int) bool { return n > slices.Min(o.Ctx) && own > 0 && n > own })
	}
	res, err := verify.AdviseWith(ctx, published, converted, o)
	if err != nil {
		return err
	}
	return show(c, stdout, res, res.Passed, func() { printAdvise(stdout, res) })
}

// adviseNames are the models that the command line names. The source, if there is one, comes first.
func adviseNames(c *cli.Command) ([]string, error) {
	args := c.Args().Slice()
	if src := c.String("source"); src != "" {
		if len(args) != 1 {
			return nil, usagef("%s: with --source expected one artifact, got %d arguments", c.Name, len(args))
		}
		return []string{src, args[0]}, nil
	}
	if len(args) < 1 || len(args) > 2 {
		return nil, usagef("%s: expected a model, or a model and what it was converted to, got %d arguments", c.Name, len(args))
	}
	return args, nil
}

// ggufOf is the name of the GGUF model of an artifact.
func ggufOf(dir string) string {
	if m, err := contract.ReadManifest(dir); err == nil {
		for _, e := range m.Artifacts {
			if e.Container == string(checkpoint.GGUF) {
				return e.Model
			}
		}
	}
	return spec.GGUFModelName
}

// ggufFiles are the files that paths name: files, or folders of artifacts.
func ggufFiles(paths []string) ([]string, error) {
	var out []string
	for _, path := range paths {
		if st, err := os.Stat(path); err == nil && st.IsDir() {
			path = filepath.Join(path, ggufOf(path))
		}
		if ok, err := gguf.HasMagic(path); err != nil {
			return nil, usagef("%w; llama.cpp reads GGUF files", err)
		} else if !ok {
			return nil, usagef("%s is no GGUF file, and llama.cpp reads no other", path)
		}
		out = append(out, path)
	}
	return out, nil
}

// adviseLists reads what can be given several times: types, pairs of types and texts.
func adviseLists(c *cli.Command, o *verify.AdviseOptions) error {
	if c.IsSet("types") && c.IsSet("pairs") {
		return usagef("--types are to search pairs of, --pairs are measured as they are; name one of both")
	}
	for _, name := range c.StringSlice("types") {
		t, err := cacheType(name)
		if err != nil {
			return err
		}
		o.Types = append(o.Types, t)
	}
	var err error
	if o.Pairs, err = typePairs(c.StringSlice("pairs")); err != nil {
		return err
	}
	files, _ := c.Generic("text").(*paths)
	if files == nil || slices.Equal(*files, paths{allKinds}) {
		return nil // depends on the model
	}
	for _, path := range *files {
		t, err := evaluationText(path)
		if err != nil {
			return err
		}
		o.Texts = append(o.Texts, t)
	}
	return nil
}

// allKinds as a text stands for all that come with the program.
const allKinds = "kinds"

// defaultTexts are what a model is measured on if nothing else is named: conversations if it comes
// with a template for them, for raw prose says little of a model that was trained to chat. Vocabularies
// that cannot be read are nil: what is wrong with them is told when a text is.
func defaultTexts(c *cli.Command, stderr io.Writer, vocabs ...*tokenizer.Vocab) []ppl.Text {
	template := !slices.ContainsFunc(vocabs, func(v *tokenizer.Vocab) bool { return v == nil || v.ChatTemplate == "" })
	files, _ := c.Generic("text").(*paths)
	all := files != nil && slices.Equal(*files, paths{allKinds})
	var out []ppl.Text
	for _, k := range texts.Kinds() {
		if k.Chat && all && !template {
			notes(stderr)(k.Name + " is left out: the model comes with no chat template")
		}
		if k.Chat && !template || !all && k.Chat != template || !all && !k.Chat && k.Name != texts.EvaluationName {
			continue
		}
		out = append(out, ppl.Text{Name: k.Name, Data: k.Data, Chat: k.Chat, Kind: k.Kind})
	}
	return out
}

// modelFile is the GGUF file that runtimes load of a model, "" for none.
func modelFile(m *checkpoint.Checkpoint) string {
	if m.Container != checkpoint.GGUF {
		return ""
	}
	return m.Path
}

// checkContainer refuses containers that there are none of.
func checkContainer(c *cli.Command) error {
	switch s := checkpoint.Container(c.String("container")); s {
	case "", checkpoint.GGUF, checkpoint.Safetensors:
		return nil
	default:
		return usagef("--container %q: expected gguf or safetensors", s)
	}
}

// within returns the contexts that the models were made for, the shortest in any case.
func within(contexts []int, models ...*checkpoint.Checkpoint) []int {
	return slices.DeleteFunc(slices.Clone(contexts), func(n int) bool {
		return n > slices.Min(contexts) && slices.ContainsFunc(models, func(m *checkpoint.Checkpoint) bool {
			return m != nil && m.Config.Context > 0 && n > m.Config.Context
		})
	})
}

// adviseModels opens what the command line names. What it returns is to be
// closed even with an error.
func adviseModels(ctx context.Context, report progress.Func, c *cli.Command, args []string, texts []ppl.Text) (
	published, converted *checkpoint.Checkpoint, err error,
) {
	switch len(args) {
	case 1:
		if !isArtifact(args[0]) {
			published, err = checkpoint.Open(args[0])
			return published, nil, err
		}
		converted, _, err = openConverted(ctx, report, args[0], c.String("container"), texts)
		return nil, converted, err
	case 2:
		if published, err = checkpoint.Open(args[0]); err != nil {
			return published, nil, err
		}
		var made string
		converted, made, err = openConverted(ctx, report, args[1], c.String("container"), texts)
		if err != nil || made == "" {
			return published, converted, err
		}
		digest, err := published.Digest(ctx, report.Of("reading the source, MiB"))
		if err == nil && digest != made {
			err = fmt.Errorf("%s was not made from %s: it names a source with SHA-256 %s, this one has %s", args[1], args[0], made, digest)
		}
		return published, converted, err
	}
	return nil, nil, usagef("advise: expected a model, or a model and what it was converted to, got %d arguments", len(args))
}

func isArtifact(path string) bool {
	_, err := os.Stat(filepath.Join(path, spec.ManifestName))
	return err == nil
}

// openConverted opens an artifact, checked, or any other model. made is the
// digest of the source that an artifact names.
func openConverted(ctx context.Context, report progress.Func, path, container string, texts []ppl.Text) (
	m *checkpoint.Checkpoint, made string, err error,
) {
	if !isArtifact(path) {
		m, err = checkpoint.Open(path)
		return m, "", err
	}
	checks := &contract.Checker{Progress: report}
	a, err := contract.Open(ctx, path, container, checks)
	if err != nil {
		return nil, "", err
	}
	if a != nil {
		m, made = a.Model, a.Manifest.Source.SHA256
	}
	for _, x := range checks.Checks {
		if !x.OK {
			err = errors.Join(err, fmt.Errorf("%s: %s: %s", path, x.Check, x.Detail))
		}
	}
	for _, text := range texts {
		if err == nil && text.SHA256() == a.Sidecar.Calibration.SHA256 {
			err = fmt.Errorf("%s is the text that %s was fitted to; measure on another", text.Name, path)
		}
	}
	return m, made, err
}

func printAdvise(w io.Writer, a *spec.AdviseJSON) {
	for i, t := range a.Texts {
		say(w, "%s, %d windows of %d tokens, PPL %.4f\n", t.Name, t.Windows, t.Context, a.BasePPL[i])
	}
	rotation := ""
	if !a.Rotation {
		rotation = ", attention rotation off"
	}
	for _, n := range a.Notes {
		say(w, "note: %s\n", n)
	}
	fmt.Fprintf(w, "compared with: %s%s%s\n", a.Base, rotation, roundedNote(a.RoundedInputs))
	if a.Backend != "" {
		fmt.Fprintf(w, "backend: %s, facts from %s\n", backendName(a), a.Facts)
	}
	if a.Engine != nil {
		fmt.Fprintf(w, "computed by %s\n", engineName(a.Engine))
	}
	fmt.Fprintln(w)
	head := []string{"K", "V", "weights", "context", "bytes/token", "cache", "PPL ratio", "KLD", "error", "same top %"}
	several := slices.ContainsFunc(a.Rows, func(r spec.AdviseRow) bool { return r.Text != "" })
	if several {
		head = slices.Insert(head, 4, "text")
	}
	if a.Backend != "" {
		head = append(head, "runs")
	}
	t := newTable(head...)
	for _, r := range a.Rows {
		row := []string{
			r.KType, r.VType, weightsName(r.Converted), fmt.Sprint(r.Ctx),
			fmt.Sprintf("%.0f", r.BytesPerToken), cacheSize(r.CacheBytes), fmt.Sprintf("%.4f", r.PPLRatio),
			fmt.Sprintf("%.6f", r.KLD), fmt.Sprintf("%.6f", r.KLDErr), fmt.Sprintf("%.2f", 100*r.SameTop),
		}
		if several {
			row = slices.Insert(row, 4, r.Text)
		}
		if a.Backend != "" {
			row = append(row, r.Runs)
		}
		t.row(row...)
	}
	t.print(w)
	fmt.Fprintln(w)
	if several {
		printByText(w, a)
	}
	printReasons(w, a)
	if len(a.Choices) == 0 {
		fmt.Fprintf(w, "no pair of types%s has a KLD of at most %g at every context\n", where(a, " that"), a.MaxKLD)
	}
	for _, c := range a.Choices {
		fmt.Fprintf(w, "%s: K %s, V %s%s: %.0f bytes a token, %s at %d, KLD at most %.6f (gate %g)\n",
			weightsName(c.Converted), c.KType, c.VType, where(a, ", which"), c.BytesPerToken, cacheSize(c.CacheBytes),
			c.Ctx, c.Worst, a.MaxKLD)
		for _, l := range c.Lines {
			switch {
			case l.Text == "":
				fmt.Fprintf(w, "  %s: %s\n", l.For, l.Note)
				continue
			case l.Note != "":
				fmt.Fprintf(w, "  %s (%s):\n", l.For, l.Note)
			default:
				fmt.Fprintf(w, "  %s:\n", l.For)
			}
			for line := range strings.SplitSeq(l.Text, "\n") {
				fmt.Fprintf(w, "    %s\n", line)
			}
		}
	}
	switch {
	case a.Passed:
	case len(a.Choices) == 0 || a.Choices[len(a.Choices)-1].Converted != a.Rows[len(a.Rows)-1].Converted:
		fmt.Fprintln(w, "below the gate: nothing that was measured passes (exit code 1)")
	default:
		fmt.Fprintln(w, "below the gate: no cache smaller than F16 passes (exit code 1)")
	}
	printImprove(w, a)
}

// printImprove says which smaller cache changes of the weights might make good enough.
func printImprove(w io.Writer, a *spec.AdviseJSON) {
	i := a.Improve
	if i == nil {
		return
	}
	than := "F16 caches"
	if len(a.Choices) > 0 {
		than = fmt.Sprintf("K %s, V %s", a.Choices[0].KType, a.Choices[0].VType)
	}
	fmt.Fprintf(w, "K %s, V %s would take %s less than %s, but costs a KLD of %.6f as the weights are; "+
		"this changes them if that helps, and measures it:\n  %s\n",
		i.KType, i.VType, cacheSize(i.Saved), than, i.Worst, i.Command)
	if x := i.Removable; x != nil && *x >= 0.005 {
		fmt.Fprintf(w, "  %.0f %% of the energy of keys comes from biases and can be taken out, exactly or nearly\n", 100**x)
	}
	if x := i.ScoreErrorLeft; x != nil {
		fmt.Fprintf(w, "  scales between the gains of q_norm and k_norm leave at best %.2f of the error of scores\n", *x)
	}
	if x := i.Expected; x != nil {
		fmt.Fprintf(w, "  expect a KLD of about %.2g to %.2g, by what was left of that of %s\n", x.Low, x.High, x.Like)
	}
}

// printByText compares texts: of each pair the largest KLD of the contexts on each.
func printByText(w io.Writer, a *spec.AdviseJSON) {
	type pair struct {
		k, v      string
		converted bool
	}
	var names []string
	var pairs []pair
	worst := map[pair]map[string]float64{}
	for _, r := range a.Rows {
		p := pair{r.KType, r.VType, r.Converted}
		if worst[p] == nil {
			worst[p], pairs = map[string]float64{}, append(pairs, p)
		}
		if !slices.Contains(names, r.Text) {
			names = append(names, r.Text)
		}
		worst[p][r.Text] = max(worst[p][r.Text], r.KLD)
	}
	fmt.Fprintln(w, "KLD by text, the worst context:")
	head := []string{"K", "V", "weights"}
	for _, n := range names {
		head = append(head, printable(kindOf(a, n)))
	}
	t := newTable(head...)
	for _, p := range pairs {
		row := []string{p.k, p.v, weightsName(p.converted)}
		for _, n := range names {
			row = append(row, fmt.Sprintf("%.6f", worst[p][n]))
		}
		t.row(row...)
	}
	t.print(w)
	fmt.Fprintln(w)
}

// kindOf is what a text that comes with the program is; others keep their names.
func kindOf(a *spec.AdviseJSON, name string) string {
	for _, t := range a.Texts {
		if t.Name == name && t.Kind != "" && strings.HasPrefix(name, embeddedPrefix) {
			return t.Kind
		}
	}
	return name
}

// printReasons tells which pairs do not run or are slow, and why.
func printReasons(w io.Writer, a *spec.AdviseJSON) {
	var reasons []string
	pairs := map[string][]string{}
	for _, r := range a.Rows {
		pair := r.KType + "/" + r.VType
		if r.Reason == "" || slices.Contains(pairs[r.Reason], pair) {
			continue
		}
		if pairs[r.Reason] == nil {
			reasons = append(reasons, r.Reason)
		}
		pairs[r.Reason] = append(pairs[r.Reason], pair)
	}
	if len(reasons) == 0 {
		return
	}
	fmt.Fprintln(w, "not recommended there:")
	for _, r := range reasons {
		fmt.Fprintf(w, "  %s: %s\n", strings.Join(pairs[r], ", "), r)
	}
	fmt.Fprintln(w)
}

// backendName is the backend that was asked for.
func backendName(a *spec.AdviseJSON) string {
	s := a.Backend
	if s == string(backends.Any) {
		s += " (what runs on all of them)"
	}
	if a.TensorSplit {
		s += ", split by tensors"
	}
	return s
}

// where says after a word that pairs run on the backend, "" where none was asked for.
func where(a *spec.AdviseJSON, word string) string {
	switch a.Backend {
	case "":
		return ""
	case string(backends.Any):
		return word + " runs everywhere"
	}
	return word + " runs on " + a.Backend
}

// cacheSize writes the size of a cache.
func cacheSize(n int64) string {
	const mib = 1 << 20
	if n < mib {
		return fmt.Sprintf("%.1f KiB", float64(n)/1024)
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/mib)
}

// roundedNote says in a line of text that products were computed as llama.cpp's CPU
// backend does for a file's types.
func roundedNote(rounded bool) string {
	if rounded {
		return "; inputs of products rounded for the types of the file"
	}
	return ""
}

func weightsName(converted bool) string {
	if converted {
		return "converted"
	}
	return "published"
}
