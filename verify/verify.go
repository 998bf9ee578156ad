// Package verify measures artifacts and checkpoints on held-out text.
package verify

import (
	"context"
	"fmt"
	"math"
	"path/filepath"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/audit"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/progress"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// Options of Artifact.
type Options struct {
	Text        ppl.Text
	Ctx, Chunks int
	// Sink and Recent override the policy of the artifact; negative keeps it.
	Sink, Recent int
	// Code measures another code than the sidecar's: raw, srht or random, which
	// need no calibration. "" is the sidecar's.
	Code    codec.Kind
	Seed    uint64
	Threads int
	// Kernels scores coded keys with the decode kernels, token by token as a runtime
	// does, instead of as products with decoded keys: the same but for the rounding
	// of queries, and slower.
	Kernels bool
	// Source, if set, is what the artifact was made from: the proof that the
	// function is preserved needs it.
	Source   *checkpoint.Checkpoint
	Progress progress.Func
	// Engines compute; nil is the own pass.
	Engines engine.Engines
	// Notice, if set, is told what is worth knowing and is no error.
	Notice func(text string)
	// Stock, if set, also measures a stock runtime's cache types.
	CacheTypes *kvcache.CacheTypes

	// Fitted adds codes of the calibration to the audit, [layer][head]; only a
	// conversion still has them.
	Fitted [][]map[codec.Kind]*codec.Code
	// Head describes the fits behind the audit's rows; nil takes the manifest's.
	Head func(layer, head int) audit.Head
}

// Artifact measures an opened artifact: perplexity with float and 1-bit keys,
// their divergence, the beta audit, and with a source the function proof.
func Artifact(ctx context.Context, a *contract.Artifact, checks *contract.Checker, o Options) (*spec.VerifyJSON,
	error) {
	if o.Text.SHA256() == a.Sidecar.Calibration.SHA256 {
		return nil, option.Errorf("%s is the text that the codes were fitted to; measure on another", o.Text.Name)
	}
	o.Threads = parallel.Threads(o.Threads)
	policy, err := Policy(a.Sidecar, o.Sink, o.Recent)
	if err == nil {
		err = policy.CheckContext(o.Ctx)
	}
	if err != nil {
		return nil, err
	}
	s, err := newSubject(a, o, policy)
	if err != nil {
		return nil, err
	}
	w, err := ppl.Tokenize(ctx, a.Model, o.Text, o.Ctx, o.Chunks)
	if err != nil {
		return nil, err
	}
	if o.Engines == nil {
		o.Engines = engine.OwnEngines{Threads: o.Threads}
	}
	e, err := o.Engines.Open(ctx, a.Model)
	if err != nil {
		return nil, err
	}
	keys := &engine.Keys{Cache: s.cache, Policy: s.policy, Sidecar: filepath.Join(a.Dir, a.Entry.Sidecar)}
	if s.kind != a.Sidecar.Kind {
		keys.Sidecar, keys.Kind, keys.Seed = "", string(s.kind), o.Seed
	}
	opt := engine.Options{Run: o.Progress.Of("measuring float and " + s.what),
		Compare: o.Progress.Of("comparing float and " + s.what)}
	if s.meter != nil {
		s.meter.Threads = o.Threads
		opt.Hooks = s.meter.Hooks(ctx)
	}
	if o.Notice != nil && e.Identity().Engine == engine.Llama && s.policy.Recent > 0 {
		o.Notice(OneByOne(s.policy.Recent))
	}
	float := &engine.Reference{Engine: e}
	res, err := e.Compare(ctx, w, float, []engine.Lane{{Keys: keys}}, opt)
	if err != nil {
		return nil, err
	}
	if err := res.Check(); err != nil {
		return nil, fmt.Errorf("%s on %s: %w", a.Dir, o.Text.Name, err)
	}
	text := o.Text.Info(w)
	out := &spec.VerifyJSON{
		Contract: checks.Checks,
		PPL:      ppl.PPLJSON(res, w, s.policy, string(s.kind)), KLD: ppl.KLDJSON(&res.Divergences[0]),
		Positions: ppl.Bands(&res.Divergences[0], w, positionBands), Bytes: s.bytes, Text: &text, Layers: []spec.Layer{},
	}
	out.PPL.Kernels = o.Kernels
	out.CodeName, out.Pairs = string(s.kind), s.pairs
	if s.bytes.Parts != "" {
		out.CodeName = spec.CodeJoint
	}
	if id := o.Engines.Identity(); id.Engine != engine.Own {
		out.Engine = &id
	}
	if s.meter != nil {
		head := o.Head
		if head == nil {
			head = fromManifest(a.Manifest, s.kind, s.codes, s.policy.Anchor)
		}
		out.Layers = audit.Layers(a.Model.Config, s.meter.Rows, head)
	}
	if o.Source != nil {
		if out.Function, err = function(ctx, a, o, w, float, checks); err != nil {
			return nil, err
		}
		out.Contract = checks.Checks
	}
	if o.CacheTypes != nil {
		if out.Stock, err = measureCacheTypes(ctx, a.Model, o, w); err != nil {
			return nil, err
		}
	}
	out.OK = checks.OK() && finite(out)
	return out, nil
}

// Policy returns what of a cache is coded: as a sidecar says, where sink and recent are -1. Less is an
// *option.Error.
func Policy(s *sidecar.Sidecar, sink, recent int) (kvcache.Policy, error) {
	p := kvcache.Policy{Anchor: s.Anchor, Sink: s.Sink, Recent: s.Recent, Exceptions: s.Exceptions}
	for _, x := range []struct {
		field string
		n     int
		to    *int
	}{{"Sink", sink, &p.Sink}, {"Recent", recent, &p.Recent}} {
		if x.n < -1 {
			return p, option.Bad(x.field, x.n, "expected -1, for the artifact's, or more")
		}
		if x.n >= 0 {
			*x.to = x.n
		}
	}
	return p, nil
}

// OneByOne says what a window of recent tokens costs where llama.cpp computes.
func OneByOne(recent int) string {
	return fmt.Sprintf("with %d recent tokens llama.cpp decodes the text token by token, as they are replaced in the "+
		"cache when they are recent no more; --recent 0 is faster", recent)
}

// A subject is the cache that is measured beside the float model.
type subject struct {
	what   string // for progress: what is coded
	policy kvcache.Policy
	kind   codec.Kind
	cache  refmodel.Cache
	bytes  *spec.BytesJSON
	pairs  bool // layers are given the codes of the layer below
	// codes and meter are of codes per head; joint codes have no beta table.
	codes [][]*codec.Code
	meter *audit.Meter
}

// newSubject makes the cache of an artifact's codes, or of the one that was asked for.
func newSubject(a *contract.Artifact, o Options, policy kvcache.Policy) (*subject, error) {
	cfg := a.Model.Config
	if _, ok := a.Sidecar.HeadCodes(); !ok {
		return newGroups(a, o, policy)
	}
	s := &subject{what: "coded keys", policy: policy}
	var err error
	if s.codes, s.kind, err = codesInUse(a.Sidecar, o); err != nil {
		return nil, err
	}
	if s.kind != a.Sidecar.Kind {
		s.policy.Anchor, s.policy.Exceptions = 0, 0
	}
	cache, err := kvcache.NewCodes(cfg, s.codes, s.policy)
	if err != nil {
		return nil, err
	}
	cache.Kernels = o.Kernels
	s.cache, s.bytes = cache, kvcache.Bytes(cfg, s.codes, s.policy)
	s.meter = &audit.Meter{Config: cfg, Policy: s.policy}
	s.meter.Codes, err = auditCodes(s.codes, o)
	return s, err
}

// newGroups is newSubject for an artifact with joint codes.
func newGroups(a *contract.Artifact, o Options, policy kvcache.Policy) (*subject, error) {
	if o.Code != "" {
		return nil, option.Bad("Code", o.Code, "the artifact has joint codes of keys and values, which nothing here replaces")
	}
	var groups [][]*codec.Group
	for _, y := range a.Sidecar.Layers {
		groups = append(groups, y.Groups)
	}
	cache, err := kvcache.NewGroups(a.Model.Config, groups, policy)
	if err != nil {
		return nil, err
	}
	cache.Kernels = o.Kernels
	return &subject{what: "coded keys and values", policy: policy, kind: a.Sidecar.Kind, cache: cache, pairs: cache.Pairs(),
		bytes: kvcache.GroupBytes(a.Model.Config, groups, policy)}, nil
}

// finite: a measurement that is not a number is never good.
func finite(v *spec.VerifyJSON) bool {
	numbers := []float64{v.PPL.Float, v.PPL.OneBit, v.KLD.Mean}
	if v.Stock != nil {
		numbers = append(numbers, v.Stock.PPL, v.Stock.KLD.Mean)
	}
	for _, x := range numbers {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return false
		}
	}
	return true
}

// codesInUse returns the sidecar's codes, or those of a code that needs no fit.
func codesInUse(s *sidecar.Sidecar, o Options) ([][]*codec.Code, codec.Kind, error) {
	codes, _ := s.HeadCodes()
	switch o.Code {
	case "", s.Kind:
		return codes, s.Kind, nil
	case codec.Raw, codec.SRHT, codec.Random:
	default:
		return nil, "", option.Errorf("code %q needs calibration and is not in the artifact (it has %s; raw, srht and random need none)", o.Code, s.Kind)
	}
	var out [][]*codec.Code
	for l, heads := range codes {
		var row []*codec.Code
		for h, fitted := range heads {
			c, err := codec.DataFree(o.Code, fitted.D, o.Seed, l, h)
			if err != nil {
				return nil, "", err
			}
			row = append(row, c)
		}
		out = append(out, row)
	}
	return out, o.Code, nil
}

// auditCodes lists the audit's columns per head.
func auditCodes(codes [][]*codec.Code, o Options) ([][]audit.Codes, error) {
	var out [][]audit.Codes
	for l, heads := range codes {
		var row []audit.Codes
		for h, c := range heads {
			var fitted map[codec.Kind]*codec.Code
			if o.Fitted != nil {
				fitted = o.Fitted[l][h]
			}
			x, err := audit.Columns(c, fitted, o.Seed, l, h)
			if err != nil {
				return nil, err
			}
			row = append(row, x)
		}
		out = append(out, row)
	}
	return out, nil
}

// fromManifest takes what a conversion recorded about its fits.
func fromManifest(m *spec.Manifest, kind codec.Kind, codes [][]*codec.Code, anchor int) func(l, h int) audit.Head {
	at := map[[2]int]*spec.Layer{}
	for i := range m.Layers {
		at[[2]int{m.Layers[i].Layer, m.Layers[i].Head}] = &m.Layers[i]
	}
	return func(l, h int) audit.Head {
		x := audit.Head{Code: string(kind), Bits: audit.BitsPerNumber(codes[l][h]), Anchor: anchor}
		if r := at[[2]int{l, h}]; r != nil && r.Code == string(kind) {
			x.Tokens = r.Tokens
			if r.TrainCos1bit != nil {
				x.Train = audit.Row{"code": {Cos1bit: *r.TrainCos1bit}}
			}
		}
		return x
	}
}

// function compares the artifact's float model with its source, and puts the
// re-rounding floor beside it.
func function(ctx context.Context, a *contract.Artifact, o Options, w *ppl.Windows, got *engine.Reference,
	checks *contract.Checker) (*spec.FunctionJSON, error) {
	digest, err := o.Source.Digest(ctx, o.Progress.Of("reading the source, MiB"))
	if err != nil {
		return nil, err
	}
	if digest != a.Manifest.Source.SHA256 {
		err = fmt.Errorf("%s has SHA-256 %s, the artifact was made from %s", o.Source.Path, digest, a.Manifest.Source.SHA256)
	}
	if !checks.Add("source", err, "the source is the one that was converted") {
		return nil, nil
	}
	base, err := o.Engines.Open(ctx, o.Source)
	if err != nil {
		return nil, err
	}
	with := func(weights checkpoint.Weights) (engine.Engine, error) {
		if o.Engines.Identity().Engine == engine.Own { // llama.cpp reads the file's head in any case
			head, err := storedHead(o.Source, weights)
			if err != nil {
				return nil, err
			}
			weights = head
		}
		return base.With(ctx, weights)
	}
	plain := checkpoint.NewEdited(o.Source, nil)
	source, err := with(plain)
	if err != nil {
		return nil, err
	}
	src := &engine.Reference{Engine: source}
	res, err := source.Compare(ctx, w, src, []engine.Lane{{Again: got}}, engine.Options{
		Run: o.Progress.Of("running the source"), Compare: o.Progress.Of("comparing with the source")})
	if err != nil {
		return nil, err
	}
	scaled, windows := checkpoint.NewEdited(o.Source, nil), 1 // enough for a floor, of which 100 are allowed
	like := edited{}
	if requantised(a) {
		like, windows = editedBy(a.Manifest.Identities), len(w.Tokens)
	}
	if err := like.foldLike(scaled); err != nil {
		return nil, err
	}
	stored := a.Entry.OutType == outTypeSource && a.Model.Container == checkpoint.GGUF
	floor := func(n int, round func(x []float32)) (*ppl.Divergence, error) {
		part := w.Part(0, n)
		scaled.Round = func(t *checkpoint.Tensor, x []float32) {
			round(x)
			if stored {
				roundStored(t, x)
			}
		}
		rounded, err := with(scaled)
		if err != nil {
			return nil, err
		}
		res, err := rounded.Compare(ctx, part, src.Part(w, n), []engine.Lane{{}}, engine.Options{
			Run:     o.Progress.Of("measuring the rounding floor"),
			Compare: o.Progress.Of("comparing with the rounding floor")})
		if err != nil {
			return nil, err
		}
		return &res.Divergences[0], nil
	}
	f, err := floor(windows, roundBF16)
	if err != nil {
		return nil, err
	}
	g := &res.Divergences[0]
	note, differs := preserved(a, g, f, nil)
	if differs != nil {
		// One huge weight makes a model that jumps: few tokens change much, and which ones
		// differs from rounding to rounding. Eight times the error shows how many can.
		coarse, err := floor(len(w.Tokens), roundCoarse)
		if err != nil {
			return nil, err
		}
		note, differs = preserved(a, g, f, coarse)
	}
	checks.Add("function preserved", differs, note)
	return &spec.FunctionJSON{
		MaxAbsDLogit: g.MaxAbsDLogit, KLDMean: g.Mean, SameTop: g.SameTop,
		FloorMaxAbsDLogit: f.MaxAbsDLogit, FloorKLDMean: f.Mean, FloorSameTop: f.SameTop,
	}, nil
}

// preserved says whether an artifact's float model is its source, from the
// divergence g of the two and that of the floor: the source with nothing but its
// query and key tensors rounded to BF16.
//
// It is a fuse for models that compute something else (a lost window, a wrong RoPE
// base, a damaged tensor: 0.01 to several nats), not a measure of quality; the
// report prints the numbers themselves. KLD grows with the square of the error:
//   - F32 and F16 are finer than BF16 and measure 0.001 to 0.2 floors.
//   - BF16 for all tensors, of which the floor rounds a tenth, measures 1 to 30
//     floors; 100 leave room for sensitive layers.
//   - Q8_0 rounds to 1/254 of a block's largest magnitude, about four times coarser,
//     and measures 30 to 130 floors (75 on SmolLM2-135M, a KLD of 0.0014).
//
// A floor near zero would demand more than float32 sums can keep, hence 1e-4. coarse, if not
// nil, is the divergence of the source with its query and key tensors rounded eight times as
// coarsely, on the windows of g: of a smooth model it is 64 floors, of one that jumps
// it shows the jumps, and twice as much is allowed (ten times for Q8_0).
func preserved(a *contract.Artifact, g, f, coarse *ppl.Divergence) (note string, err error) {
	bound := func(of func(d *ppl.Divergence) float64) float64 {
		q8 := a.Entry.OutType == "q8_0"
		most := 100*of(f) + 1e-4
		if q8 {
			most = 500*of(f) + 5e-4
		}
		if requantised(a) {
			most = max(1e-4, requantFloors*of(f))
			if likeFloor(g, f) {
				most = max(most, of(g))
			}
		}
		switch {
		case coarse == nil:
		case q8:
			most = max(most, 10*of(coarse)+5e-4)
		default:
			most = max(most, 2*of(coarse)+1e-4)
		}
		return most
	}
	exact := bound(func(d *ppl.Divergence) float64 { return d.Mean })
	mean := exact
	for _, id := range a.Manifest.Identities {
		if id.Applied && !id.Exact {
			// Measured to cost 0.001 to 0.025 where it pays; more is a mistake.
			mean += 0.05
			break
		}
	}
	if a.Model.Config.Experts() > 0 {
		// Any rounding may turn the choice of an expert where two are nearly equal,
		// which moves one token by as much as 1 nat, in the floor or only here. So
		// the mean cannot be strict, and the median of all tokens must be.
		if m := bound(func(d *ppl.Divergence) float64 { return d.Median }) + mean - exact; !(g.Median <= m) { // also NaN
			return "", fmt.Errorf("median KLD of the artifact's float model from its source is %.3g, expected at most %.3g (outtype %s): the artifact computes something else", g.Median, m, a.Entry.OutType)
		}
		mean += 0.1
	}
	if !(g.Mean <= mean) {
		return "", fmt.Errorf("mean KLD of the artifact's float model from its source is %.3g, expected at most %.3g (outtype %s): the artifact computes something else", g.Mean, mean, a.Entry.OutType)
	}
	return fmt.Sprintf("mean KLD from the source %.2g, at most %.2g", g.Mean, mean), nil
}

// outTypeSource is that of models whose tensors keep their types.
const outTypeSource = "source"

// requantised says whether edited tensors have quantised types because the source's have.
func requantised(a *contract.Artifact) bool {
	if a.Entry.OutType != outTypeSource {
		return false
	}
	for _, name := range []string{"attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight"} {
		if t, ok := a.Model.Find(family.Name(0, name)); ok {
			if typ, err := gguf.ParseType(t.Type); err == nil && typ.Quantized() {
				return true
			}
		}
	}
	return false
}

// roundStored rounds rows to the type that they are stored in, as a conversion writes them.
func roundStored(t *checkpoint.Tensor, x []float32) {
	typ, err := gguf.ParseType(t.Type)
	if err != nil {
		return
	}
	typ = gguf.WritableType(typ, t.Cols())
	n, err := gguf.RowBytes(typ, len(x))
	if err != nil {
		return
	}
	buf := make([]byte, n)
	if gguf.QuantizeRow(typ, buf, x) == nil {
		gguf.DequantizeRow(typ, x, buf) //nolint:errcheck // of what was just made
	}
}

// roundCoarse rounds to five significant bits, BF16 has eight.
func roundCoarse(x []float32) {
	const dropped = 19
	for i, v := range x {
		b := math.Float32bits(v)
		x[i] = math.Float32frombits((b + 1<<(dropped-1)) &^ (1<<dropped - 1))
	}
}

func roundBF16(x []float32) {
	for i, v := range x {
		x[i] = dtype.BF16Round(v)
	}
}
