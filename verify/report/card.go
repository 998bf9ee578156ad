package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/backends"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// CardOptions are what a model card says that an artifact does not know.
type CardOptions struct {
	// BaseModel is the id of the source on the hub, such as Org/Name; "" leaves it out.
	BaseModel string
	// QuantizedBy is who publishes the model; "" leaves it out.
	QuantizedBy string
	// Name of the converted model; "" takes the source's.
	Name string
}

// Card writes README.md for an artifact: front matter, numbers that were
// measured, and how to load the files. m.Manifest must be there.
func Card(w io.Writer, m Model, o CardOptions) error {
	if m.Manifest == nil {
		return fmt.Errorf("a model card needs an artifact's manifest")
	}
	v, err := newView(0, &m)
	if err != nil {
		return err
	}
	name := o.Name
	if name == "" {
		name = v.Manifest.Source.Name
	}
	c := &card{v: v, o: o, name: oneLine(name)}
	c.front()
	c.intro()
	c.numbers()
	c.loading()
	c.details()
	_, err = io.WriteString(w, c.b.String())
	return err
}

type card struct {
	v    *view
	o    CardOptions
	name string
	b    strings.Builder
}

func (c *card) line(format string, args ...any) { fmt.Fprintf(&c.b, format+"\n", args...) }

// container returns the artifact's entry for a container.
func (c *card) container(name string) (spec.Artifact, bool) {
	for _, a := range c.v.Manifest.Artifacts {
		if a.Container == name {
			return a, true
		}
	}
	return spec.Artifact{}, false
}

// yaml quotes a string; JSON strings are YAML.
func yaml(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		return `""`
	}
	return string(b)
}

// oneLine keeps names from ending a line or a code span.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == '`' || r == '|' || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
}

// prose is oneLine for text outside of code spans, where names must not become links or tags.
func prose(s string) string { return markdown.Replace(oneLine(s)) }

var markdown = strings.NewReplacer(`\`, `\\`, "<", `\<`, "[", `\[`, "]", `\]`, "*", `\*`)

func (c *card) front() {
	c.line("---")
	l := c.v.License
	switch {
	case len(l.IDs) == 1:
		c.line("license: %s", yaml(l.IDs[0]))
	case l.Known():
		c.line("license:")
		for _, id := range l.IDs {
			c.line("- %s", yaml(id))
		}
	}
	if l.Known() && l.Name != "" {
		c.line("license_name: %s", yaml(l.Name))
	}
	if l.Known() && l.Link != "" {
		c.line("license_link: %s", yaml(l.Link))
	}
	if c.o.BaseModel != "" {
		c.line("base_model: %s", yaml(c.o.BaseModel))
		c.line("base_model_relation: quantized")
	}
	if c.o.QuantizedBy != "" {
		c.line("quantized_by: %s", yaml(c.o.QuantizedBy))
	}
	c.line("pipeline_tag: text-generation")
	if _, ok := c.container("safetensors"); ok {
		c.line("library_name: transformers")
	} else {
		c.line("library_name: gguf")
	}
	c.line("tags:")
	c.line("- phaseconv")
	c.line("- kv-cache")
	for _, a := range c.v.Manifest.Artifacts {
		c.line("- %s", yaml(a.Container))
	}
	c.line("---")
}

func (c *card) intro() {
	m := c.v.Manifest
	c.line("# %s", prose(c.name))
	c.line("")
	c.line("`%s` (%s, %d layers, %d KV heads of %d), converted by %s so that its KV cache survives few bits.",
		oneLine(m.Source.Name), prose(m.Model.Family), m.Model.Layers, m.Model.KVHeads, m.Model.HeadDim, prose(m.Tool))
	c.line("")
	if a := c.v.Verdict.Alarm; a != "" {
		c.line("**%s**", prose(a))
		c.line("")
	}
	c.line("%s", prose(c.v.Verdict.Headline))
	c.line("%s", prose(c.v.Verdict.Text))
	c.line("")
	c.line("%s", prose(c.v.Verdict.Advice))
	c.line("")
	what := "keys"
	if c.v.Whole() {
		what, _ = c.v.coded()
	}
	c.line("Stock runtimes load the model as an ordinary one and keep their own cache types; the coded %s need a runtime that reads the sidecar.", what)
	c.line("")
}

func (c *card) numbers() {
	v := c.v
	c.line("## Measured")
	c.line("")
	if v.PPL == nil || v.KLD == nil || v.Bytes == nil {
		c.line("Nothing was measured.")
		c.line("")
		return
	}
	p, k, b := v.PPL, v.KLD, v.Bytes
	how, float, coded := "keys in code `%s`, anchor %d, first %d and last %d keys F16, values float", "float keys", "coded keys"
	size := fmt.Sprintf("| bytes of keys per token | %s (F16) | %s |", comma(b.KF16), comma(b.KCode))
	if v.Whole() {
		what, left := v.coded()
		how, float, coded = what+" in code `%s`, anchor %d, first %d and last %d tokens F16", "float cache", "coded cache"
		if left != "" {
			how += ", " + strings.TrimPrefix(left, "F16 ") + " float"
		}
		size = fmt.Sprintf("| bytes of keys and values per token | %s (F16) | %s |", comma(b.KVF16), comma(b.KVCode))
	}
	c.line("On %s tokens of `%s` (%s of %d, second halves scored), which nothing was fitted to; "+how+".",
		comma(p.Tokens), oneLine(v.Text.Name), windows(p), p.Ctx, v.Code, p.Anchor, p.Sink, p.Recent)
	c.line("")
	c.line("| | %s | %s |", float, coded)
	c.line("|---|---:|---:|")
	c.line("| perplexity | %s ± %s | %s ± %s |",
		fix(p.Float, 3), fix(p.FloatErr, 3), fix(p.OneBit, 3), fix(p.OneBitErr, 3))
	c.line("| ratio | 1 | %s ± %s |", fix(p.Ratio, 4), fix(p.RatioErr, 4))
	c.line("| KL divergence, nats per token | 0 | %s ± %s |", sig(k.Mean), pm(k.Mean, k.MeanErr))
	c.line("| same most likely token | 100 %% | %s |", pct(k.SameTop, 1))
	c.line("%s", size)
	c.line("")
	if f := v.Function; f != nil {
		c.line("With float keys the converted weights differ from the source by a KLD of %s (largest change of a logit %s); rounding the same tensors to BF16 costs %s (%s).",
			sig(f.KLDMean), sig(f.MaxAbsDLogit), sig(f.FloorKLDMean), sig(f.FloorMaxAbsDLogit))
		c.line("")
	}
	if v.Stock == nil || len(v.Stock.Rows) == 0 {
		return
	}
	c.line("Stock cache types of %s:", v.Stock.Runtime)
	c.line("")
	text, rule := "", ""
	if v.Stock.Texts {
		text, rule = " text |", "---|"
	}
	c.line("| K | V | context |%s weights | bytes per token | perplexity ratio | KLD |", text)
	c.line("|---|---|---:|%s---|---:|---:|---:|", rule)
	for _, r := range v.Stock.Rows {
		if v.Stock.Texts {
			text = " " + oneLine(strings.TrimPrefix(r.Text, "embedded:")) + " |"
		}
		c.line("| %s | %s | %s |%s %s | %s | %s | %s ± %s |", oneLine(r.KType), oneLine(r.VType), comma(r.Ctx),
			text, oneLine(r.Weights), r.Bytes(), fix(r.PPLRatio, 3), sig(r.KLD), pm(r.KLD, r.KLDErr))
	}
	c.line("")
	if v.Rounded {
		c.line(roundedNote)
		c.line("")
	}
}

func (c *card) loading() {
	g, hasGGUF := c.container("gguf")
	_, safe := c.container("safetensors")
	file := oneLine(shellJoin([]string{g.Model}))
	c.line("## Load it")
	c.line("")
	if hasGGUF {
		c.line("llama.cpp:")
		c.line("")
		c.line("```sh")
		c.line("llama-cli -m %s%s -p \"Once upon a time\"", file, c.cacheFlags())
		c.line("```")
		c.line("")
	}
	if l := c.launch(); safe && l.MLX {
		c.line("mlx-lm, with the caches that the weights were changed for:")
		c.line("")
		c.line("```sh")
		c.line("%s", l.Lines()[0].Text)
		c.line("```")
		c.line("")
	}
	name := g.Model
	if whole := gguf.Whole(name); hasGGUF && whole != name {
		c.line("llama.cpp reads the other files of the split by itself. For the programs below that read one file, join them first:")
		c.line("")
		c.line("```sh")
		c.line("llama-gguf-split --merge %s %s", file, oneLine(shellJoin([]string{whole})))
		c.line("```")
		c.line("")
		name, file = whole, oneLine(shellJoin([]string{whole}))
	}
	if safe {
		c.line("transformers:")
	} else {
		c.line("transformers, for the architectures that its GGUF reader knows:")
	}
	c.line("")
	c.line("```python")
	c.line("from transformers import AutoModelForCausalLM, AutoTokenizer")
	if safe {
		c.line("tokenizer = AutoTokenizer.from_pretrained(\".\")")
		c.line("model = AutoModelForCausalLM.from_pretrained(\".\")")
	} else {
		c.line("tokenizer = AutoTokenizer.from_pretrained(\".\", gguf_file=%s)", yaml(name))
		c.line("model = AutoModelForCausalLM.from_pretrained(\".\", gguf_file=%s)", yaml(name))
	}
	c.line("```")
	c.line("")
	if hasGGUF {
		c.line("ollama:")
		c.line("")
		c.line("```sh")
		c.line("echo %s > Modelfile", oneLine(shellJoin([]string{"FROM ./" + name})))
		c.line("ollama create %s -f Modelfile", slug(c.name))
		c.line("ollama run %s", slug(c.name))
		c.line("```")
		c.line("")
		if s := c.ollamaCache(); s != "" {
			c.line("%s", s)
			c.line("")
		}
		c.line("LM Studio: `lms import %s`, then load it%s.", file, c.studioFields())
		c.line("")
	}
	if hasGGUF && name != g.Model {
		c.line("Check it, with the text of your choice, before files are joined (a file that the manifest does not list fails):")
	} else {
		c.line("Check it, with the text of your choice:")
	}
	c.line("")
	c.line("```sh")
	c.line("phaseconv verify .")
	c.line("```")
	c.line("")
}

// cacheFlags are llama.cpp's options for the cache types that the weights were
// changed for.
func (c *card) cacheFlags() string {
	f := c.v.Manifest.Fusion
	if f == nil {
		return ""
	}
	return fmt.Sprintf(" --cache-type-k %s --cache-type-v %s", f.KType, f.VType)
}

// launch describes a run with the cache types that the weights were changed for, F16 where there are none.
func (c *card) launch() backends.Launch {
	l := backends.Launch{Model: ".", K: gguf.TypeF16, V: gguf.TypeF16}
	f := c.v.Manifest.Fusion
	if f == nil {
		return l
	}
	k, kerr := kvcache.ParseStockType(f.KType)
	v, verr := kvcache.ParseStockType(f.VType)
	if kerr == nil && verr == nil {
		l.K, l.V, l.Ctx, l.Rotation, l.MLX = k, v, f.TargetCtx, f.Rotation, k.CacheOnly()
	}
	return l
}

// ollamaCache says how Ollama is told of those cache types, "" for none.
func (c *card) ollamaCache() string {
	if c.v.Manifest.Fusion == nil {
		return ""
	}
	for _, l := range c.launch().Lines() {
		switch l.For {
		case "Ollama":
			return "Ollama " + l.Note + "."
		case "Ollama, environment":
			return fmt.Sprintf("Its server takes the cache types from the environment: `%s` (%s).", l.Text, l.Note)
		}
	}
	return ""
}

// studioFields are LM Studio's load settings for those types.
func (c *card) studioFields() string {
	f := c.v.Manifest.Fusion
	if f == nil {
		return ""
	}
	return fmt.Sprintf(" with Flash Attention on, K Cache Quantization Type %s and V Cache Quantization Type %s", f.KType, f.VType)
}

// slug makes a name that ollama and shells take.
func slug(s string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(s) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.':
			b.WriteRune(r)
		default:
			b.WriteRune('-')
		}
	}
	if t := strings.Trim(b.String(), "-."); t != "" {
		return t
	}
	return "model"
}

// weights tells how weights were changed for the type of a quantised file, before and after.
func (c *card) weights() {
	f := c.v.Manifest.FFN
	if f == nil {
		return
	}
	c.line("- chosen for %s weights, among %d changes compared on text that they were not fitted to: %s", f.FileType, len(f.Tried),
		oneLine(f.Chosen))
	table := func(how string, rows []spec.FFNTry) {
		if len(rows) == 0 {
			return
		}
		c.line("")
		c.line("| after `llama-quantize ... %s`, %s | bits per weight | KLD | PPL ratio |", f.FileType, oneLine(how))
		c.line("|---|---:|---:|---:|")
		for _, x := range rows {
			c.line("| %s | %s | %s ± %s | %s |", oneLine(x.Name), fix(x.Bits, 3), sig(x.KLD), sig(x.KLDErr), fix(x.PPLRatio, 4))
		}
		c.line("")
	}
	table("emulated", f.Measured)
	for _, q := range c.v.Quantized {
		table(stockWeightsText(q), q.Quantized)
	}
}

func (c *card) details() {
	m := c.v.Manifest
	c.line("## How it was made")
	c.line("")
	c.line("```sh")
	c.line("%s", oneLine(shellJoin(m.Command)))
	c.line("```")
	c.line("")
	for _, id := range m.Identities {
		if id.Applied {
			exact := "exact"
			if !id.Exact {
				exact = "not exact"
			}
			c.line("- folded into %d tensors: %s, %s (%s)", id.Tensors, id.ID, prose(id.Name), exact)
		}
	}
	if f := m.Fusion; f != nil {
		c.line("- chosen for %s keys and %s values in contexts of %s tokens, among %d changes compared on text that they were not fitted to: %s",
			f.KType, f.VType, comma(f.TargetCtx), len(f.Tried), prose(f.Chosen))
		for _, x := range f.Tried {
			if x.Name == f.Chosen && x.F16KLD != nil {
				c.line("- that change is not exact: it costs a KLD of %s with F16 caches, and %s is left with these types (%s without it)", sig(*x.F16KLD), sig(x.KLD), sig(f.Tried[0].KLD))
			}
		}
	}
	c.weights()
	c.line("- source: `%s`, SHA-256 `%s`", oneLine(m.Source.Name), m.Source.SHA256)
	for _, n := range m.Notes {
		c.line("- read so: %s", prose(n))
	}
	c.line("- calibration: `%s`, %s tokens, SHA-256 `%s`",
		oneLine(m.Calibration.Name), comma(m.Calibration.Tokens), m.Calibration.SHA256)
	c.line("")
	c.line("| file | bytes | SHA-256 |")
	c.line("|---|---:|---|")
	for _, f := range m.Files {
		c.line("| `%s` | %s | `%s` |", oneLine(f.Name), comma(f.Bytes), f.SHA256)
	}
	c.line("")
	c.line("The licence is that of the source%s.", map[bool]string{true: "; its files in this folder do not state it", false: ""}[c.v.License.String() == ""])
	if c.v.License.Gated {
		c.line("Its page asks for something before a download (gated access); the same conditions hold here.")
	}
	c.line("")
	c.line("```bibtex")
	c.line("%s", c.v.BibTeX)
	c.line("```")
}
