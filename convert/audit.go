package convert

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/phaseconv/phaseconv/convert/bits"
	"github.com/phaseconv/phaseconv/convert/calibrate"
	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/convert/write"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/audit"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/figures"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/progress"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// AuditOptions of Audit. Start from DefaultAuditOptions. Fields that Options has too mean the
// same.
type AuditOptions struct {
	Calibration       ppl.Text
	CalibrationTokens int
	Text              ppl.Text // held out
	Ctx, Chunks       int
	Code              codec.Kind
	Bits              float64
	Alloc             bits.Alloc
	// Balance audits the keys as the K/Q pair scaling would leave them.
	Balance  bool
	Policy   kvcache.Policy
	Seed     uint64
	Threads  int
	Progress progress.Func
	// Engines compute the model; nil is the own pass. llama.cpp spreads signs evenly, and has no FFN audit and no
	// Detail in Figures.
	Engines engine.Engines
	// FFN, if set, asks for the audit of the FFN matrices too; seed, threads and
	// progress are filled in.
	FFN *audit.FFNOptions
	// Figures, if set, is called at the end with what the audit has in hand, for a
	// report: options of figures.Run, all but Detail filled in.
	Figures func(p figures.Options) error
	// Notice, if set, is told what is worth knowing and is no error.
	Notice func(text string)
}

// DefaultAuditOptions returns what the command line takes unless told otherwise.
func DefaultAuditOptions() AuditOptions {
	d := DefaultOptions()
	d.Policy.Recent = 0
	return AuditOptions{
		Calibration: d.Calibration, CalibrationTokens: d.CalibrationTokens, Text: d.Evaluation, Ctx: d.Ctx, Chunks: d.Chunks,
		Code: d.Code, Bits: d.Bits, Balance: d.Balance, Policy: d.Policy, Seed: d.Seed,
	}
}

// Audit fits every column's code to one text and measures them on another, without changing or
// writing anything.
func Audit(ctx context.Context, c *checkpoint.Checkpoint, o AuditOptions) (*spec.AuditJSON, error) {
	o.Threads = parallel.Threads(o.Threads)
	if err := checkTexts(o.Calibration, o.Text, o.CalibrationTokens, o.Ctx, o.Chunks); err != nil {
		return nil, err
	}
	if err := o.settleEngine(c); err != nil {
		return nil, err
	}
	keys := plan.KeyOptions{Code: o.Code, Bits: o.Bits, Alloc: o.Alloc, Policy: o.Policy}
	if _, err := plan.NewKeys(c.Config, keys); err != nil {
		return nil, err
	}
	cal, err := ppl.TokenizeSpread(ctx, c, o.Calibration, o.Ctx, o.CalibrationTokens/o.Ctx)
	if err != nil {
		return nil, err
	}
	if err := calibrate.Enough(c.Config, cal.Tokens, o.Policy, o.Bits); err != nil {
		return nil, err
	}
	w, err := ppl.Tokenize(ctx, c, o.Text, o.Ctx, o.Chunks)
	if err != nil {
		return nil, err
	}
	own := engine.NewOwn(c, o.Threads)
	m, e := own.Model, engine.Engine(own)
	if o.Engines != nil {
		if e, err = o.Engines.Open(ctx, c); err != nil {
			return nil, err
		}
	}
	fit, err := fitAudit(ctx, m, e, cal.Tokens, keys, o)
	if err != nil {
		return nil, err
	}
	meter, err := o.meter(c, m.Threads, fit)
	if err != nil {
		return nil, err
	}
	codes := fit.Codes(o.Code)
	lane, remove, err := o.lane(c, e, cal, fit, meter)
	if err != nil {
		return nil, err
	}
	defer remove()
	res, err := e.Compare(ctx, w, &engine.Reference{Engine: e}, []engine.Lane{lane}, engine.Options{
		Hooks: meter.Hooks(ctx), Run: o.Progress.Of("measuring"), Compare: o.Progress.Of("comparing predictions")})
	if err != nil {
		return nil, err
	}
	if err := res.Check(); err != nil {
		return nil, fmt.Errorf("%s on %s: %w", c.Path, o.Text.Name, err)
	}
	out := &spec.AuditJSON{
		Calibration: o.Calibration.Info(cal), Text: o.Text.Info(w), Balance: o.Balance,
		PPL: ppl.PPLJSON(res, w, o.Policy, string(o.Code)), KLD: ppl.KLDJSON(&res.Divergences[0]),
		Layers: audit.Layers(c.Config, meter.Rows, fittedHead(fit, o.Code, o.Policy.Anchor)),
		Bytes:  kvcache.Bytes(c.Config, codes, o.Policy),
	}
	if id := e.Identity(); id.Engine != engine.Own {
		out.Engine = &id
	}
	if o.FFN != nil {
		f := *o.FFN
		f.Seed, f.Threads, f.Progress = o.Seed, m.Threads, o.Progress.Of("FFN matrices")
		if out.FFN, err = audit.FFN(ctx, c.Config, c, f); err != nil {
			return nil, err
		}
	}
	if o.Figures == nil {
		return out, nil
	}
	p := o.figures(ctx, c, w, cal, fit, codes, out.Layers, meter.Scale)
	if e != engine.Engine(own) {
		p.Engine, p.Coded = e, lane
	}
	return out, o.Figures(p)
}

// meter is what takes the betas of the codes that were fitted.
func (o *AuditOptions) meter(c *checkpoint.Checkpoint, threads int, fit *calibrate.Result) (*audit.Meter, error) {
	meter := &audit.Meter{Config: c.Config, Policy: o.Policy, Threads: threads, Scale: fit.KeyScale(c.Config)}
	for l, layer := range fit.Layers {
		var row []audit.Codes
		for h, head := range layer.Heads {
			x, err := audit.Columns(head.Codes[o.Code], head.Codes, o.Seed, l, h)
			if err != nil {
				return nil, err
			}
			row = append(row, x)
		}
		meter.Codes = append(meter.Codes, row)
	}
	return meter, nil
}

// settleEngine refuses what another engine than the own pass cannot do.
func (o *AuditOptions) settleEngine(c *checkpoint.Checkpoint) error {
	if engine.IsOwn(o.Engines) {
		return nil
	}
	x := &Options{Engines: o.Engines, Formats: []checkpoint.Container{checkpoint.GGUF}, Code: o.Code, Alloc: o.Alloc,
		Policy: o.Policy, FFN: plan.FFNNone, Notice: o.Notice}
	if o.FFN != nil {
		return option.Bad("FFN", nil, "the FFN audit reads weights alone, and takes --engine own")
	}
	if err := x.settleEngine(c); err != nil {
		return err
	}
	o.Alloc = x.Alloc
	return nil
}

// lane is that of coded keys. Codes are of balanced keys: the own pass undoes the balance around the code, llama.cpp
// computes with balanced weights, and reads the codes from a file until remove is called.
func (o *AuditOptions) lane(c *checkpoint.Checkpoint, e engine.Engine, cal *ppl.Windows, fit *calibrate.Result,
	meter *audit.Meter) (lane engine.Lane, remove func(), err error) {
	lane.Keys, remove = &engine.Keys{Policy: o.Policy}, func() {}
	if e.Identity().Engine == engine.Own {
		cache, err := kvcache.NewCodes(c.Config, fit.Codes(o.Code), o.Policy)
		if err != nil {
			return lane, remove, err
		}
		cache.Scale, lane.Keys.Cache = meter.Scale, cache
		return lane, remove, nil
	}
	dir, err := os.MkdirTemp("", "phaseconv-audit")
	if err != nil {
		return lane, remove, err
	}
	remove = func() { os.RemoveAll(dir) } //nolint:errcheck // a temporary folder
	lane.Keys.Sidecar, lane.Edits = filepath.Join(dir, spec.GGUFSidecarName), fit.Edits()
	if err := o.writeCodes(lane.Keys.Sidecar, c, cal, fit); err != nil {
		remove()
		return lane, remove, err
	}
	return lane, remove, nil
}

// writeCodes writes what was fitted as a sidecar of no model in particular.
func (o *AuditOptions) writeCodes(path string, c *checkpoint.Checkpoint, cal *ppl.Windows,
	fit *calibrate.Result) error {
	none := strings.Repeat("0", sha256.Size*2)
	j := &job{o: Options{Code: o.Code, Policy: o.Policy, Calibration: o.Calibration}, source: c, calibration: cal}
	s, err := j.sidecar(c.Config, fit, write.Tag{Source: spec.Source{SHA256: none}}, none)
	if err != nil {
		return err
	}
	return s.WriteGGUF(path)
}

// fitAudit fits every column's code to the calibration text.
func fitAudit(ctx context.Context, m *refmodel.Model, e engine.Engine, windows [][]int32, keys plan.KeyOptions,
	o AuditOptions) (
	*calibrate.Result, error,
) {
	opt := calibrate.Options{
		Kinds: fitKinds(o.Code), Bits: o.Bits, Policy: o.Policy, Balance: o.Balance, Seed: o.Seed, Threads: o.Threads,
		Progress: o.Progress.Of("allotting signs"),
	}
	var err error
	if opt.Signs, err = bits.Allocate(ctx, m, windows, keys.Allocation(), opt.Allocation()); err != nil {
		return nil, err
	}
	opt.Progress = o.Progress.Of("calibrating")
	if e.Identity().Engine != engine.Own {
		opt.Tap = e.Tap
	}
	return calibrate.Run(ctx, m, windows, opt)
}

// figures returns what an audit has in hand for a report.
func (o *AuditOptions) figures(ctx context.Context, c *checkpoint.Checkpoint, w, cal *ppl.Windows,
	fit *calibrate.Result,
	codes [][]*codec.Code, rows []spec.Layer, scale func(layer, head int) []float32) figures.Options {
	p := figures.Options{
		Config: c.Config, Weights: c, Codes: codes, Kind: o.Code, Policy: o.Policy, Scale: scale,
		Windows: w.Tokens, Text: o.Text.Info(w),
		Calibration: cal.Tokens, CalibrationName: o.Calibration.Name, Long: ppl.Longer(ctx, c, o.Text), Rows: rows,
		Seed: o.Seed, Threads: o.Threads, Progress: o.Progress,
	}
	for _, layer := range fit.Layers {
		var row []map[codec.Kind]*codec.Code
		for _, h := range layer.Heads {
			row = append(row, h.Codes)
		}
		p.Fitted = append(p.Fitted, row)
	}
	return p
}

// fitKinds lists the codes to fit for an audit: the one in use and the columns
// that need calibration.
func fitKinds(code codec.Kind) []codec.Kind {
	out := []codec.Kind{codec.Cen, codec.Learned}
	if code != codec.Cen && code != codec.Learned {
		out = append(out, code)
	}
	return out
}

// fittedHead describes the fits of a calibration to the audit.
func fittedHead(fit *calibrate.Result, code codec.Kind, anchor int) func(layer, head int) audit.Head {
	return func(l, h int) audit.Head {
		head := fit.Layers[l].Heads[h]
		x := audit.Head{Code: string(code), Bits: audit.BitsPerNumber(head.Codes[code]), Anchor: anchor, Tokens: head.Tokens,
			Train: audit.Row{"code": head.Train[code]}}
		for k, v := range head.Train {
			x.Train[string(k)] = v
		}
		return x
	}
}
