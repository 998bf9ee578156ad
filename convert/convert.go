package convert

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"

	"github.com/phaseconv/phaseconv/rotations/sidecar"

	"github.com/phaseconv/phaseconv/convert/calibrate"
	"github.com/phaseconv/phaseconv/format/atomicfile"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/hf"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/progress"
	"github.com/phaseconv/phaseconv/verify/report"
)

// Options of Convert.
type Options struct {
	Source, Out string
	Formats     []checkpoint.Container
	OutType     string
	Code        string
	// Bits is the number of signs per number of a key, on average over all heads, and
	// Alloc how they are spread; see calibrate.Allocs. "" is uniform.
	Bits    float64
	Alloc   string
	Balance bool
	Policy  kvcache.Policy
	// Fuse says which changes of weights are allowed: none, exact or near.
	WeightEdits string
	// Cache, if set, names the stock cache types that the weights are changed for,
	// and TargetCtx the context that they will be used at.
	Cache       *kvcache.CacheTypes
	TargetCtx   int
	CacheTokens int // calibration tokens for that; 0 takes 8192
	Calibration ppl.Text
	// CalibrationTokens is how many tokens are fitted to, in windows of Ctx.
	CalibrationTokens int
	Evaluation        ppl.Text
	Ctx, Chunks       int
	Seed              uint64
	Threads           int
	// Tool and Command are recorded in the manifest.
	Tool     string
	Command  []string
	Progress progress.Func
	// Work, if set, is a folder in which fitted layers are kept, and looked for, so
	// that a run that was interrupted can be taken up and several processes can
	// share the fitting. It is removed after success unless KeepWork is set. Merge
	// demands that all layers are in it.
	Work            string
	KeepWork, Merge bool
	// Notice, if set, is told what is worth knowing and is no error.
	Notice func(text string)
	// Report adds report.html and report.json to the artifact; ReportDetail measures
	// more for them, see figures.Options.
	Report, ReportDetail bool

	// companions, if set, are the files to copy beside safetensors; others stay behind.
	companions map[string]bool
}

func usage(format string, args ...any) error {
	return &option.Error{Err: fmt.Errorf(format, args...)}
}

// Plans opens the source and plans every container, without calibrating.
func Plans(o Options) ([]*Plan, error) {
	c, err := checkpoint.Open(o.Source)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return plans(c, o, planned(c, &o))
}

func plans(c *checkpoint.Checkpoint, o Options, ch *changes) ([]*Plan, error) {
	var out []*Plan
	for _, f := range o.Formats {
		p, err := makePlan(c, f, o.OutType, ch)
		if err != nil {
			return nil, err
		}
		if p.Keys, err = planKeys(c.Config, &o); err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// check refuses what cannot work before hours are spent on it.
func (o *Options) check(c *checkpoint.Checkpoint) error {
	if entries, err := os.ReadDir(o.Out); err == nil {
		if len(entries) > 0 {
			return usage("%s exists and is not empty; name a new folder", o.Out)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return usage("%s: %v", o.Out, err)
	}
	if len(o.Formats) == 0 {
		return usage("no output format")
	}
	if o.Calibration.SHA256() == o.Evaluation.SHA256() {
		return usage("calibration and evaluation text are the same (%s); numbers on fitted text mean nothing", o.Calibration.Name)
	}
	if _, err := planKeys(c.Config, o); err != nil {
		return err
	}
	switch o.WeightEdits {
	case "", EditsNone, EditsExact, EditsApproximate: // the default is exact
	default:
		return usage("--fuse %q: expected none, exact or near", o.WeightEdits)
	}
	if o.Cache == nil && o.WeightEdits == EditsApproximate {
		return usage("--fuse near is for a cache type: name one with --cache-type-k")
	}
	if o.Cache != nil {
		if _, err := kvcache.NewLlamaCpp(c.Config, *o.Cache); err != nil {
			return usage("%v", err)
		}
		if o.TargetCtx < 16 || c.Config.Context > 0 && o.TargetCtx > c.Config.Context {
			return usage("--target-ctx %d: expected 16 to %d, the model's context", o.TargetCtx, c.Config.Context)
		}
	}
	if o.CalibrationTokens < o.Ctx {
		return usage("%d calibration tokens do not fill one window of context %d", o.CalibrationTokens, o.Ctx)
	}
	return nil
}

// Result is what a conversion made.
type Result struct {
	Plans    []*Plan
	Manifest *spec.Manifest
	Verify   *spec.VerifyJSON
}

// open opens the source, refuses what cannot work, and returns what is planned
// for it and the windows to calibrate on.
func (o *Options) open() (*checkpoint.Checkpoint, *changes, *ppl.Windows, error) {
	c, err := checkpoint.Open(o.Source)
	if err != nil {
		return nil, nil, nil, err
	}
	ch, w, err := o.prepare(c)
	if err != nil {
		c.Close()
		return nil, nil, nil, err
	}
	return c, ch, w, nil
}

// prepare does what open does on a source that is open.
func (o *Options) prepare(c *checkpoint.Checkpoint) (*changes, *ppl.Windows, error) {
	if err := o.check(c); err != nil {
		return nil, nil, err
	}
	ch := planned(c, o)
	if _, err := plans(c, *o, ch); err != nil {
		return nil, nil, err
	}
	w, err := ppl.Tokenize(c, o.Calibration, o.Ctx, o.CalibrationTokens/o.Ctx)
	return ch, w, err
}

// Convert makes the artifact in o.Out and measures it. Nothing appears under
// o.Out before it is complete.
func Convert(ctx context.Context, o Options) (*Result, error) {
	c, ch, w, err := o.open()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	// A text that is too short is found before hours are spent, not after.
	held, err := ppl.Tokenize(c, o.Evaluation, o.Ctx, o.Chunks)
	if err != nil {
		return nil, err
	}
	f, err := newFolder(o.Out, o.Notice)
	if err != nil {
		return nil, err
	}
	defer f.abort()
	tmp := f.path

	if ch, err = searchEdits(ctx, c, &o, ch); err != nil {
		return nil, err
	}
	ps, err := plans(c, o, ch)
	if err != nil {
		return nil, err
	}
	fit, err := o.fit(ctx, c, ch, w.Tokens, nil)
	if err != nil {
		return nil, err
	}
	for l, layer := range fit.Layers {
		if layer.PairScale == nil {
			continue
		}
		if err := transform.FoldPairScale(ch.view, l, layer.PairScale); err != nil {
			return nil, err
		}
	}
	man, err := manifest(c, o, ps, w.Tokens, fit)
	if err != nil {
		return nil, err
	}
	man.Fusion = ch.report
	fold := &sidecar.Fold{SourceSHA256: man.Source.SHA256, Edits: ch.view.Edits, Added: ch.view.Added}
	if err := fold.Write(filepath.Join(tmp, spec.FoldName)); err != nil {
		return nil, err
	}
	if err := record(tmp, []string{spec.FoldName}, man); err != nil {
		return nil, err
	}
	for _, p := range ps {
		if err := writeContainer(ctx, tmp, c, o, p, ch.view, fit, man); err != nil {
			return nil, err
		}
	}
	if err := writeManifest(tmp, man); err != nil {
		return nil, err
	}
	// Measured before it gets its name: what cannot be measured leaves nothing behind.
	res := &Result{Plans: ps, Manifest: man}
	var detail *spec.Detail
	if res.Verify, detail, err = measure(ctx, tmp, c, o, fit, w, held); err != nil {
		return nil, err
	}
	var advice *spec.AdviseJSON
	if o.Cache != nil {
		if advice, err = compare(ctx, c, tmp, man.Artifacts[0], &o); err != nil {
			return nil, err
		}
		if man.Fusion != nil {
			man.Fusion.Measured, man.Fusion.RoundedInputs = advice.Rows, advice.RoundedInputs
		}
	}
	man.Layers, man.Measured = res.Verify.Layers, res.Verify
	man.Measured.Layers = nil
	err = writeManifest(tmp, man)
	res.Verify.Layers = man.Layers
	if err != nil {
		return nil, err
	}
	if o.Report {
		if err := report.Update(tmp, func(r *spec.ReportJSON) {
			if r.Detail = detail; advice != nil {
				r.Advise = advice.Rows
			}
		}); err != nil {
			return nil, err
		}
	}
	if err := f.commit(); err != nil {
		return nil, err
	}
	o.done(len(c.Config.Layers))
	return res, nil
}

// manifest fills in what is known before files are written.
func manifest(c *checkpoint.Checkpoint, o Options, ps []*Plan, windows [][]int32, fit *calibrate.Result) (*spec.Manifest, error) {
	digest, err := c.Digest()
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(c.Path)
	if err != nil {
		return nil, err
	}
	cfg := c.Config
	shape, err := cfg.Uniform()
	if err != nil {
		return nil, err
	}
	m := &spec.Manifest{
		Version: spec.Version, Tool: o.Tool, Command: o.Command,
		Source: spec.Source{Name: filepath.Base(abs), Container: string(c.Container), SHA256: digest},
		Model: spec.Model{Family: cfg.Family.Name, Layers: len(cfg.Layers), Heads: shape.Heads, KVHeads: shape.KVHeads, HeadDim: shape.HeadDim,
			Hidden: cfg.Hidden, Vocab: cfg.Vocab, Context: cfg.Context, Experts: cfg.Experts()},
		Code: spec.CodeInfo{Kind: o.Code, Bits: meanBits(fit, o.Code), Alloc: o.alloc(), Exceptions: o.Policy.Exceptions, Anchor: o.Policy.Anchor, Sink: o.Policy.Sink, Recent: o.Policy.Recent},
		Calibration: spec.Text{Name: o.Calibration.Name, SHA256: o.Calibration.SHA256(), Tokens: len(windows) * o.Ctx,
			Context: o.Ctx, Windows: len(windows)},
		Seed: o.Seed, Identities: ps[0].Identities,
	}
	for l, layer := range fit.Layers {
		for h, head := range layer.Heads {
			for _, kind := range sorted(head.Curves) {
				curve := spec.Curve{Layer: l, Head: h, Code: kind}
				for _, p := range head.Curves[kind] {
					curve.Points = append(curve.Points, [2]float64{float64(p.Step), p.Cos1bit})
				}
				m.Curves = append(m.Curves, curve)
			}
		}
	}
	return m, nil
}

func sorted[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

// writeModel writes one model without its sidecar and returns its entry in the
// manifest, the digest still to be filled in, and the files.
func writeModel(ctx context.Context, dir string, c *checkpoint.Checkpoint, o Options, p *Plan, view *checkpoint.Edited, man *spec.Manifest) (entry spec.Artifact, files []string, err error) {
	done, total := 0, len(p.Tensors)
	w := &writer{ctx: ctx, c: c, view: view, plan: p, tick: func() {
		done++
		o.Progress.Of("writing "+string(p.Container))(done, total)
	}}
	entry = spec.Artifact{Container: string(p.Container), PairLayout: p.PairLayout, OutType: o.OutType}
	switch p.Container {
	case checkpoint.GGUF:
		kvs, err := metadata(c, o, man)
		if err != nil {
			return entry, nil, err
		}
		entry.Model, entry.Sidecar = spec.GGUFModelName, spec.GGUFSidecarName
		if _, err := w.gguf(filepath.Join(dir, entry.Model), kvs); err != nil {
			return entry, nil, err
		}
		files = append(files, entry.Model)
	case checkpoint.Safetensors:
		names, err := w.safetensors(dir)
		if err != nil {
			return entry, nil, err
		}
		entry.Model, entry.Sidecar, entry.OutType = names[len(names)-1], spec.SafetensorsSidecarName, "source"
		more, err := writeAuxiliary(c, dir, man, o.companions, len(view.Added) > 0)
		if err != nil {
			return entry, nil, err
		}
		files = append(names, more...)
	}
	return entry, files, nil
}

// openModel opens a model that was written into dir.
func openModel(dir string, e spec.Artifact) (*checkpoint.Checkpoint, error) {
	if e.Container == string(checkpoint.GGUF) {
		dir = filepath.Join(dir, e.Model)
	}
	c, err := checkpoint.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("the file just written does not open: %w", err)
	}
	return c, nil
}

// writeContainer writes one model with its sidecar and records the files.
func writeContainer(ctx context.Context, dir string, c *checkpoint.Checkpoint, o Options, p *Plan, view *checkpoint.Edited, fit *calibrate.Result, man *spec.Manifest) error {
	entry, files, err := writeModel(ctx, dir, c, o, p, view, man)
	if err != nil {
		return err
	}
	// The digest is taken from what was written, not from what was meant.
	written, err := openModel(dir, entry)
	if err != nil {
		return err
	}
	defer written.Close()
	if entry.WeightsSHA256, err = written.AttentionDigest(); err != nil {
		return err
	}
	side, err := newSidecar(c, written.Config, o, fit, man, entry.WeightsSHA256)
	if err != nil {
		return err
	}
	if side, err = side.To(p.Pairs); err != nil {
		return err
	}
	path := filepath.Join(dir, entry.Sidecar)
	if p.Container == checkpoint.GGUF {
		err = side.WriteGGUF(path)
	} else {
		err = side.WriteSafetensors(path)
	}
	if err != nil {
		return err
	}
	man.Artifacts = append(man.Artifacts, entry)
	return record(dir, append(files, entry.Sidecar), man)
}

func record(dir string, names []string, man *spec.Manifest) error {
	for _, n := range names {
		path := filepath.Join(dir, n)
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		sum, err := checkpoint.FileDigest(path)
		if err != nil {
			return err
		}
		man.Files = append(man.Files, spec.File{Name: n, Bytes: st.Size(), SHA256: sum})
	}
	return nil
}

// writeCompanions writes config.json with its phaseconv object and copies the
// tokenizer and the other small files, only those named if only is not nil.
// biases says that the model gets its first.
func writeAuxiliary(c *checkpoint.Checkpoint, dir string, man *spec.Manifest, only map[string]bool, biases bool) ([]string, error) {
	info := map[string]any{
		"version": spec.Version,
		"source":  man.Source,
		"code":    man.Code,
		"sidecar": spec.SafetensorsSidecarName,
		"tool":    man.Tool,
	}
	raw, err := configJSON(c.Path, info, biases)
	if err != nil {
		return nil, err
	}
	if err := atomicfile.WriteFile(filepath.Join(dir, hf.ConfigName), raw); err != nil {
		return nil, err
	}
	names := []string{hf.ConfigName}
	more, err := auxiliaryFiles(c.Path)
	if err != nil {
		return nil, err
	}
	for _, n := range more {
		if only != nil && !only[n] {
			continue
		}
		if err := copyFile(filepath.Join(c.Path, n), filepath.Join(dir, n)); err != nil {
			return nil, err
		}
		names = append(names, n)
	}
	return names, nil
}

// metadata builds the keys of the GGUF model.
func metadata(c *checkpoint.Checkpoint, o Options, man *spec.Manifest) ([]gguf.KV, error) {
	mark := provenanceTag(man.Source.SHA256, man.Code, man.Tool)
	if f := c.File(); f != nil {
		return copyWithTag(f, mark), nil
	}
	v, err := c.Vocab()
	if err != nil {
		return nil, err
	}
	return ggufKVs(c, v, o.OutType, mark)
}

// newSidecar gathers the fitted codes in the source's pair layout. Its RoPE text is
// that of the written model: GGUF rounds the parameters to float32.
func newSidecar(c *checkpoint.Checkpoint, written *family.Config, o Options, fit *calibrate.Result, man *spec.Manifest, weights string) (*sidecar.Sidecar, error) {
	text, err := sidecar.RopeText(written.Ropes())
	if err != nil {
		return nil, err
	}
	shape, err := c.Config.Uniform()
	if err != nil {
		return nil, err
	}
	s := &sidecar.Sidecar{
		Kind: o.Code, HeadDim: shape.HeadDim, Anchor: o.Policy.Anchor, Sink: o.Policy.Sink, Recent: o.Policy.Recent, Exceptions: o.Policy.Exceptions,
		Pairs: c.Config.Pairs, Rope: text, SourceSHA256: man.Source.SHA256, WeightsSHA256: weights, Tool: man.Tool,
		Calibration: sidecar.Calibration{SHA256: man.Calibration.SHA256, Tokens: man.Calibration.Tokens, Context: man.Calibration.Context},
	}
	for _, layer := range fit.Layers {
		var row []*codec.Code
		for _, h := range layer.Heads {
			row = append(row, h.Codes[o.Code])
		}
		s.Codes = append(s.Codes, row)
	}
	return s, nil
}

func writeManifest(dir string, m *spec.Manifest) error {
	b, err := contract.MarshalManifest(m)
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(filepath.Join(dir, spec.ManifestName), b)
}

// measure verifies the artifact as written, from disk. w is the text that was
// fitted to, held the other.
func measure(ctx context.Context, dir string, c *checkpoint.Checkpoint, o Options, fit *calibrate.Result, w, held *ppl.Windows) (*spec.VerifyJSON, *spec.Detail, error) {
	checks := &contract.Checker{}
	a := contract.Open(dir, string(o.Formats[0]), checks)
	if a == nil {
		return nil, nil, fmt.Errorf("%s: the artifact does not pass its own contract: %s", o.Out, failed(checks))
	}
	defer a.Close()
	side := a.Sidecar
	opt := verify.Options{
		Text: o.Evaluation, Ctx: o.Ctx, Chunks: o.Chunks, Sink: -1, Recent: -1, Seed: o.Seed, Threads: o.Threads,
		Source: c, Progress: o.Progress,
	}
	opt.Head = FittedHead(fit, o.Code, o.Policy.Anchor)
	for _, layer := range fit.Layers {
		var row []map[string]*codec.Code
		for _, h := range layer.Heads {
			x := map[string]*codec.Code{}
			for kind, code := range h.Codes {
				moved, err := code.To(c.Config.Pairs, side.Pairs)
				if err != nil {
					return nil, nil, err
				}
				x[kind] = moved
			}
			row = append(row, x)
		}
		opt.Fitted = append(opt.Fitted, row)
	}
	v, err := verify.Artifact(ctx, a, checks, opt)
	if err != nil || !o.Report {
		return v, nil, err
	}
	d, err := detail(ctx, a, o, v, opt.Fitted, w, held)
	return v, d, err
}

func failed(c *contract.Checker) string {
	for _, x := range c.Checks {
		if !x.OK {
			return x.Check + ": " + x.Detail
		}
	}
	return ""
}
