package command

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/format/tokenizer"
	"github.com/phaseconv/phaseconv/internal/buildinfo"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/generate"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

func generateCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "generate",
		Usage:     "continue a text with the coded cache, token by token, and with a float cache beside it",
		ArgsUsage: "ARTIFACT",
		Description: `The reference runtime: keys (and values, where the sidecar has codes for them) are
packed into signs as tokens arrive, and attention works on the signs. It holds all
weights in memory as float32 numbers and is made to be compared with, not to be fast.

Examples:
  phaseconv generate smol -p "The first railway"
  phaseconv generate smol -p "Once" -n 200 --temperature 0.8 --seed 3
  phaseconv generate smol -p "Once" --cache coded --recent 64 --json`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "prompt", Aliases: []string{"p"}, Usage: "text to continue"},
			&cli.IntFlag{Name: "tokens", Aliases: []string{"n"}, Usage: "tokens to generate, at most", Value: 64},
			&cli.FloatFlag{Name: "temperature", Usage: "of the choice of tokens; 0 takes the most likely one"},
			&cli.StringFlag{Name: "cache", Usage: "coded, float or both", Value: "both"},
			&cli.IntFlag{Name: "sink", Usage: "tokens at the start that stay F16 (default: the artifact's)", Value: -1, HideDefault: true},
			&cli.IntFlag{Name: "recent", Usage: "latest tokens that stay F16 (default: the artifact's)", Value: -1, HideDefault: true},
			&cli.StringFlag{Name: "container", Usage: "gguf or safetensors, when the artifact has both (default: the first)"},
			seedFlag(), threadsFlag(), jsonFlag(),
		},
		Action: func(ctx context.Context, c *cli.Command) error { return runGenerate(ctx, c, stdout, stderr) },
	}
}

// maxGenerate bounds the tokens of a text: the context of a model does too.
const maxGenerate = 1 << 20

func runGenerate(ctx context.Context, c *cli.Command, stdout, stderr io.Writer) error {
	dir, err := one(c, "artifact")
	if err != nil {
		return err
	}
	if err := checkContainer(c); err != nil {
		return err
	}
	caches, err := generateFlags(c)
	if err != nil {
		return err
	}
	checks := &contract.Checker{Progress: showProgress(stderr)}
	a, err := contract.Open(ctx, dir, c.String("container"), checks)
	if err != nil {
		return err
	}
	if a == nil || !checks.OK() {
		printContract(stderr, checks.Checks)
		return fmt.Errorf("%s does not meet the contract of an artifact; nothing is generated from it", dir)
	}
	defer a.Close()
	s, err := storage(a.Sidecar, c)
	if err != nil {
		return err
	}
	tk, err := a.Model.Tokenizer()
	if err != nil {
		return err
	}
	o := generate.Options{Prompt: tk.Encode(c.String("prompt"), tokenizer.AddSpecial), Tokens: c.Int("tokens"),
		Temperature: c.Float("temperature"), Seed: c.Uint64("seed")}
	if v := tk.Vocab(); v.AddEOS && len(o.Prompt) > 0 && int(o.Prompt[len(o.Prompt)-1]) == a.Model.Config.EOS {
		o.Prompt = o.Prompt[:len(o.Prompt)-1] // the text goes on
	}
	out := &spec.GenerateJSON{Tool: buildinfo.Tool(), Prompt: c.String("prompt"), PromptTokens: len(o.Prompt),
		Temperature: o.Temperature, Seed: o.Seed, Anchor: s.Policy.Anchor, Sink: s.Policy.Sink, Recent: s.Policy.Recent}
	m := refmodel.New(a.Model.Config, a.Model, c.Int("threads"))
	for i, name := range caches {
		show := stdout
		if c.Bool("json") {
			show = io.Discard
		}
		if i > 0 {
			fmt.Fprintln(show)
		}
		x := s
		if name == "float" {
			x = generate.Storage{}
		}
		text, err := generateText(ctx, m, tk, name, x, o, out.Prompt, show)
		if err != nil {
			return err
		}
		out.Runs = append(out.Runs, *text)
	}
	if len(out.Runs) == 2 {
		n := common(out.Runs[0].Tokens, out.Runs[1].Tokens)
		out.SameTokens = &n
	}
	if c.Bool("json") {
		return printJSON(stdout, out)
	}
	if out.SameTokens != nil {
		fmt.Fprintf(stdout, "\nthe texts have their first %d tokens in common\n", *out.SameTokens)
	}
	return nil
}

// generateFlags checks the flags and returns the caches to run.
func generateFlags(c *cli.Command) (caches []string, err error) {
	if c.String("prompt") == "" {
		return nil, usagef("generate: give the text to continue with -p TEXT")
	}
	if n := c.Int("tokens"); n < 1 || n > maxGenerate {
		return nil, usagef("--tokens %d: expected 1 to %d", n, maxGenerate)
	}
	for _, flag := range []string{"sink", "recent"} {
		if n := c.Int(flag); n < -1 {
			return nil, usagef("--%s %d: expected -1, for the artifact's, or more", flag, n)
		}
	}
	switch cache := c.String("cache"); cache {
	case "both":
		return []string{"coded", "float"}, nil
	case "coded", "float":
		return []string{cache}, nil
	default:
		return nil, usagef("--cache %q: expected coded, float or both", cache)
	}
}

// common counts the tokens that two texts have in common at their beginning.
func common(a, b []int) (n int) {
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// storage returns what a sidecar and the command line say of the coded cache.
func storage(s *sidecar.Sidecar, c *cli.Command) (generate.Storage, error) {
	policy, err := verify.Policy(s, c.Int("sink"), c.Int("recent"))
	if err != nil {
		return generate.Storage{}, err
	}
	out := generate.Storage{Policy: policy}
	if s.Layers == nil {
		out.Groups, err = generate.KeyGroups(s.Codes)
		return out, err
	}
	out.Groups = make([][]*codec.Group, len(s.Layers))
	for l, y := range s.Layers {
		out.Groups[l] = y.Groups
	}
	return out, nil
}

// generateText runs one cache and prints its text as it comes, then what it took.
func generateText(ctx context.Context, m *refmodel.Model, tk *tokenizer.Tokenizer, cache string, s generate.Storage,
	o generate.Options, prompt string, w io.Writer) (*spec.GeneratedText, error) {
	begun := false
	begin := func() {
		if !begun {
			begun = true
			fmt.Fprintf(w, "%s cache\n%s", cache, shown(prompt))
		}
	}
	all, given := slices.Clone(o.Prompt), len(tk.Decode(o.Prompt))
	said := 0
	o.Emit = func(id int32) error {
		begin()
		all = append(all, id)
		// Pieces depend on what was before, and the bytes of a character may come one by one.
		text := tk.Decode(all)[given:]
		for said < len(text) && utf8.FullRune(text[said:]) {
			_, n := utf8.DecodeRune(text[said:])
			if _, err := io.WriteString(w, shown(string(text[said:said+n]))); err != nil {
				return err
			}
			said += n
		}
		return nil
	}
	r, err := generate.Run(ctx, m, s, o)
	if err != nil {
		return nil, err
	}
	begin()
	x := &spec.GeneratedText{Cache: cache, Tokens: []int{}, Ended: r.Ended, PromptSeconds: r.Prompt.Seconds(),
		CacheTokens: r.Bytes.Tokens, CodedBytes: r.Bytes.Coded, CodedF16Bytes: r.Bytes.CodedF16, FloatBytes: r.Bytes.Float}
	for _, id := range r.Tokens {
		x.Tokens = append(x.Tokens, int(id))
	}
	x.Text = strings.ToValidUTF8(string(tk.Decode(all)[given:]), "\uFFFD")
	rate := ""
	if v := r.TokensPerSecond(); !math.IsNaN(v) && !math.IsInf(v, 0) {
		x.TokensPerSecond, rate = &v, fmt.Sprintf(", %.1f tokens/s", v)
	}
	ended := ""
	if x.Ended {
		ended = ", ended by the model"
	}
	fmt.Fprintf(w, "\n  %d tokens%s%s; %d tokens in the cache", len(x.Tokens), ended, rate, x.CacheTokens)
	if x.CodedBytes > 0 {
		fmt.Fprintf(w, ": %d bytes for what takes %d in F16", x.CodedBytes, x.CodedF16Bytes)
		if x.CodedBytes < x.CodedF16Bytes {
			fmt.Fprintf(w, " (%.1fx smaller)", float64(x.CodedF16Bytes)/float64(x.CodedBytes))
		} else {
			fmt.Fprint(w, " (the text is too short for a code to gain)")
		}
	}
	if x.FloatBytes > 0 {
		fmt.Fprintf(w, "; %d bytes in float32, without a code", x.FloatBytes)
	}
	fmt.Fprintln(w)
	return x, nil
}

// shown replaces what a terminal would obey instead of showing.
func shown(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
			return utf8.RuneError
		}
		return r
	}, s)
}
