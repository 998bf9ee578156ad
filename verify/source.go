package verify

import (
	"context"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/rotations"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/audit"
	"github.com/phaseconv/phaseconv/verify/calibrate"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/probe"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// AuditOptions of Audit.
type AuditOptions struct {
	Calibration       Text
	CalibrationTokens int
	Text              Text
	Ctx, Chunks       int
	Code              string
	Bits              float64
	Alloc             string // how they are spread over heads; "" is uniform
	Balance           bool
	Policy            kvcache.Policy
	Seed              uint64
	Threads           int
	Progress          Progress
	// FFN, if set, asks for the audit of the FFN matrices too; seed, threads and
	// progress are filled in.
	FFN *audit.FFNOptions
	// Probe, if set, is called at the end with what the audit has in hand, for a
	// report: options of probe.Run, all but Detail filled in.
	Probe func(p probe.Options) error
}

// Longer returns what cuts one window of n tokens from a text, nil from a text
// that is too short.
func Longer(c *checkpoint.Checkpoint, t Text) func(n int) [][]int32 {
	return func(n int) [][]int32 {
		w, err := Tokens(c, t, n, 1)
		if err != nil {
			return nil
		}
		return w.Tokens
	}
}

// Audit fits every column's code to one text and measures them on another,
// without changing or writing anything. With Balance the keys are those that a
// conversion would leave.
func Audit(ctx context.Context, c *checkpoint.Checkpoint, o AuditOptions) (*spec.AuditJSON, error) {
	if o.Text.SHA256() == o.Calibration.SHA256() {
		return nil, usage("calibration and evaluation text are the same (%s); numbers on fitted text mean nothing", o.Text.Name)
	}
	cal, err := FitTokens(c, o.Calibration, o.Ctx, o.CalibrationTokens, o.Policy, o.Bits)
	if err != nil {
		return nil, err
	}
	w, err := Tokens(c, o.Text, o.Ctx, o.Chunks)
	if err != nil {
		return nil, err
	}
	m := refmodel.New(c.Config, c, o.Threads)
	kinds := FitKinds(o.Code)
	opt := calibrate.Options{
		Kinds: kinds, Bits: o.Bits, Policy: o.Policy, Balance: o.Balance, Seed: o.Seed, Threads: o.Threads,
		Progress: o.Progress.of("allotting signs"),
	}
	if o.Alloc == "" {
		o.Alloc = calibrate.AllocUniform
	}
	if o.Code == "frame" {
		if opt.Signs, err = calibrate.Allot(ctx, m, cal.Tokens, o.Alloc, opt); err != nil {
			return nil, err
		}
	} else if o.Bits != 1 || o.Alloc != calibrate.AllocUniform {
		return nil, usage("code %s has 1 bit per number in every head; only frame takes --bits %g and --alloc %s", o.Code, o.Bits, o.Alloc)
	}
	opt.Progress = o.Progress.of("calibrating")
	fit, err := calibrate.Run(ctx, m, cal.Tokens, opt)
	if err != nil {
		return nil, err
	}
	tap := &audit.Tap{Config: c.Config, Policy: o.Policy, Threads: m.Threads, Scale: fit.KeyScale(c.Config)}
	codes := make([][]*rotations.Code, c.Config.Layers)
	for l, layer := range fit.Layers {
		var row []audit.Codes
		for h, head := range layer.Heads {
			x, err := columns(head.Codes[o.Code], head.Codes, o.Seed, l, h)
			if err != nil {
				return nil, err
			}
			row, codes[l] = append(row, x), append(codes[l], head.Codes[o.Code])
		}
		tap.Codes = append(tap.Codes, row)
	}
	// The 1-bit lane scores keys as the source has them, so it needs codes for
	// unbalanced keys: the balance is undone around the code.
	cache, err := kvcache.NewCodes(c.Config, codes, o.Policy)
	if err != nil {
		return nil, err
	}
	cache.Scale = tap.Scale
	float, onebit := &refmodel.Lane{}, &refmodel.Lane{Cache: cache}
	err = m.Run(ctx, w.Tokens, []*refmodel.Lane{float, onebit}, refmodel.Options{Tap: tap, Progress: o.Progress.of("measuring")})
	if err != nil {
		return nil, err
	}
	base, err := ppl.Scored(m, w, float)
	if err != nil {
		return nil, err
	}
	coded, err := ppl.Scored(m, w, onebit)
	if err != nil {
		return nil, err
	}
	res, err := ppl.Measure(ctx, w, base, coded)
	if err != nil {
		return nil, err
	}
	out := &spec.AuditJSON{
		Calibration: *TextInfo(o.Calibration, cal), Text: *TextInfo(o.Text, w), Balance: o.Balance,
		PPL: pplJSON(res, w, o.Policy, o.Code), KLD: kldJSON(&res.Divergences[0]),
		Layers: audit.Layers(tap.Rows, c.Config.HeadDim, FittedHead(fit, o.Code, o.Policy.Anchor)),
		Bytes:  Bytes(c.Config, codes, o.Policy),
	}
	if o.FFN != nil {
		f := *o.FFN
		f.Seed, f.Threads, f.Progress = o.Seed, m.Threads, o.Progress.of("FFN matrices")
		if out.FFN, err = audit.FFN(ctx, c.Config, c, f); err != nil {
			return nil, err
		}
	}
	if o.Probe == nil {
		return out, nil
	}
	p := probe.Options{
		Config: c.Config, Weights: c, Codes: codes, Kind: o.Code, Policy: o.Policy, Scale: tap.Scale, Windows: w.Tokens, Text: out.Text,
		Calibration: cal.Tokens, CalibrationName: o.Calibration.Name, Long: Longer(c, o.Text), Rows: out.Layers,
		Seed: o.Seed, Threads: o.Threads, Progress: o.Progress,
	}
	for _, layer := range fit.Layers {
		var row []map[string]*rotations.Code
		for _, h := range layer.Heads {
			row = append(row, h.Codes)
		}
		p.Fitted = append(p.Fitted, row)
	}
	return out, o.Probe(p)
}

// FitKinds lists the codes to fit for an audit: the one in use and the columns
// that need calibration.
func FitKinds(code string) []string {
	out := []string{"cen", "learned"}
	if code != "cen" && code != "learned" {
		out = append(out, code)
	}
	return out
}

// perNumber returns the signs per number of a code.
func perNumber(c *rotations.Code) float64 { return float64(c.B) / float64(c.D) }

// FittedHead describes the fits of a calibration to the audit.
func FittedHead(fit *calibrate.Result, code string, anchor int) func(layer, head int) audit.Head {
	return func(l, h int) audit.Head {
		head := fit.Layers[l].Heads[h]
		x := audit.Head{Code: code, Bits: perNumber(head.Codes[code]), Anchor: anchor, Tokens: head.Tokens, Train: audit.Row{"code": head.Train[code]}}
		for k, v := range head.Train {
			x.Train[k] = v
		}
		return x
	}
}

// columns collects the codes of one head's audit: the one in use, those that
// were fitted beside it, and the data-free ones.
func columns(inUse *rotations.Code, fitted map[string]*rotations.Code, seed uint64, layer, head int) (audit.Codes, error) {
	x := audit.Codes{"code": inUse}
	for _, kind := range []string{"cen", "learned"} {
		if c := fitted[kind]; c != nil {
			x[kind] = c
		} else if inUse.Kind == kind {
			x[kind] = inUse
		}
	}
	for _, kind := range []string{"raw", "srht", "random"} {
		c, err := rotations.DataFree(kind, inUse.D, seed, layer, head)
		if err != nil {
			return nil, err
		}
		x[kind] = c
	}
	return x, nil
}
