package convert

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"strings"

	"github.com/phaseconv/phaseconv/convert/bits"
	"github.com/phaseconv/phaseconv/convert/edits"
	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/buildinfo"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/progress"
	"github.com/phaseconv/phaseconv/verify/quantweights"
	"github.com/phaseconv/phaseconv/verify/refmodel"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// Options of Convert. Start from DefaultOptions and name Source and Out.
type Options struct {
	// Source is a Hugging Face folder (safetensors) or a GGUF file, Out the folder to create.
	Source, Out string
	// Formats are the containers to write, at least one.
	Formats []checkpoint.Container
	// OutType is the element type of re-encoded GGUF matrices: f32, f16, bf16 or q8_0, or source: that
	// of the source's, see gguf.WritableType.
	OutType string

	// Code is the key code.
	Code codec.Kind
	// Bits is the number of signs per number of a key, on average over all heads; only the
	// code frame takes another number than 1.
	Bits float64
	// Alloc says how signs are spread over heads. "" spreads those of
	// frames by measured sensitivity and those of other codes evenly.
	Alloc bits.Alloc
	// Joint, if set, codes the keys and values of a layer together instead of the keys of each
	// head. Code must be frame, unless Joint.OrKeys leaves the choice; Bits has no say, and Alloc
	// spreads signs over layers, evenly unless told otherwise.
	Joint *plan.Joint
	// Balance folds the K/Q pair scaling, which makes keys easier to code.
	Balance bool
	// BreakDrafter edits keys and values that a drafter reads too (family.Family.Drafter); the drafter
	// no longer fits the model then. By default those layers stay as they are.
	BreakDrafter bool
	// Policy says which keys are coded, and how.
	Policy kvcache.Policy

	// WeightEdits says which edits of weights are allowed. "" allows approximate ones where Cache is
	// set, exact ones elsewhere.
	WeightEdits plan.WeightEdits
	// Cache, if set, names the stock cache types that the weights are edited for.
	Cache *kvcache.CacheTypes
	// TargetCtx is the context that Cache will be used at, in tokens. 0 takes 4096, or the
	// model's own context if that is shorter.
	TargetCtx int
	// CacheTokens is how many calibration tokens edits for Cache and Weights are fitted to, at least
	// one window; 0 takes edits.ChooseTokens.
	CacheTokens int

	// FFN says which changes of weights may be made for Weights, the type that the matrices of a
	// quantised file will have. They are fitted to CacheTokens tokens.
	FFN     plan.FFN
	Weights *quantweights.FileType
	// Imatrix, if set, is a file with the importance matrix of the source that llama-quantize will be
	// given, in GGUF.
	Imatrix string

	// Calibration is the text that everything is fitted to, CalibrationTokens how much of it, in
	// windows of Ctx tokens that are spread evenly over it.
	Calibration       ppl.Text
	CalibrationTokens int
	// Evaluation is held-out text: measured on, never fitted to, in Chunks windows of Ctx
	// tokens (0: all that it gives).
	Evaluation  ppl.Text
	Ctx, Chunks int
	Seed        uint64
	Threads     int // 0: all that the machine offers; no result depends on it

	// Report adds report.html and report.json to the artifact; ReportDetail measures more for
	// them, see figures.Options.
	Report, ReportDetail bool

	// Work, if set, is a folder in which fitted layers are kept, and looked for, so that a run
	// that was interrupted can be taken up and several processes can share the fitting. It is
	// removed after success unless KeepWork is set. Merge demands that all layers are in it.
	Work            string
	KeepWork, Merge bool

	// Tool and Command are recorded in the manifest.
	Tool    string
	Command []string
	// Progress, if set, is told about every step that can take long.
	Progress progress.Func
	// Engines compute the source and the artifact; nil is the own pass. llama.cpp takes GGUF files in and
	// out, spreads signs evenly, weighs errors of joint codes by queries, and has no ReportDetail.
	Engines engine.Engines
	// Notice, if set, is told what is worth knowing and is no error.
	Notice func(text string)

	settled string // what Notice is told once nothing stands in the way: how keys and values are coded
}

// DefaultOptions returns what the command line takes unless told otherwise, but for the names
// of source and result: a GGUF file in F16, keys and values of a layer in one code or, where
// Joint.OrKeys says so, keys alone in frames of 1 bit per number, texts that come with the program.
func DefaultOptions() Options {
	joint := DefaultJoint()
	joint.OrKeys, joint.OrNoRecent = true, true
	return Options{
		Formats: []checkpoint.Container{checkpoint.GGUF}, OutType: "f16",
		Code: codec.Frame, Bits: 1, Joint: &joint, Balance: true,
		Policy: kvcache.Policy{Anchor: 64, Sink: 4, Recent: JointRecent}, CacheTokens: edits.ChooseTokens,
		FFN:               plan.FFNNone,
		Calibration:       ppl.Text{Name: texts.CalibrationName, Data: texts.Calibration},
		CalibrationTokens: 12288,
		Evaluation:        ppl.Text{Name: texts.EvaluationName, Data: texts.Evaluation},
		Ctx:               512, Chunks: 4, Seed: 1,
		Tool:   buildinfo.Tool(),
		Report: true,
	}
}

// JointRecent is how many recent tokens stay as they are where keys and values are coded together,
// unless told otherwise: nothing else takes as much of the loss (docs/codes.md).
const JointRecent = 64

// DefaultJoint returns how keys and values are coded together unless told otherwise.
func DefaultJoint() plan.Joint {
	return plan.Joint{GroupOptions: bits.GroupOptions{Parts: bits.PartsBoth, Bits: 3, Span: spec.DefaultGroupDim,
		Shares: bits.Shares{Key: 1, Value: 1}},
		Fisher: true, IfAble: true}
}

// An OptionError says which field of the options cannot be, and why. Convert, Audit, Apply and
// the others return it, wrapped or not, before they do any work.
type OptionError = option.Error

// defaultTargetCtx is the context that edits of weights are for unless told otherwise.
const defaultTargetCtx = 4096

// settle fills in what depends on the source and refuses what cannot work before hours are
// spent on it.
func (o *Options) settle(c *checkpoint.Checkpoint) error {
	o.Threads = parallel.Threads(o.Threads)
	if o.WeightEdits == "" {
		o.WeightEdits = plan.EditsExact
		if o.Cache != nil {
			o.WeightEdits = plan.EditsApproximate
		}
	}
	if _, err := plan.ParseWeightEdits(string(o.WeightEdits)); err != nil {
		return option.Of("WeightEdits", o.WeightEdits, err)
	}
	if o.WeightEdits == plan.EditsApproximate && o.Cache == nil {
		return option.Bad("WeightEdits", o.WeightEdits, "it is for a cache type; name one too")
	}
	if len(o.Formats) == 0 {
		return option.Bad("Formats", nil, "no output format")
	}
	if err := plan.CheckOutType(o.OutType); err != nil {
		return err
	}
	o.settleCode(c)
	if j := o.Joint; j != nil && j.Fisher {
		if err := o.differentiable(c); err != nil {
			if !j.IfAble {
				return option.Bad("Fisher", nil, "%v", err)
			}
			queries := *j
			queries.Fisher = false
			o.Joint = &queries
			o.notice(fmt.Sprintf("%v: errors of the code are weighed by queries instead of gradients", err))
		}
	}
	if _, err := plan.NewKeys(c.Config, o.keys()); err != nil {
		return err
	}
	o.settleSpan(c.Config)
	if err := o.Policy.CheckContext(o.Ctx); err != nil {
		return err
	}
	if err := o.settleCache(c.Config); err != nil {
		return err
	}
	if err := o.settleWeights(c); err != nil {
		return err
	}
	if err := o.settleEngine(c); err != nil {
		return err
	}
	return checkTexts(o.Calibration, o.Evaluation, o.CalibrationTokens, o.Ctx, o.Chunks)
}

// settleCode takes codes of keys alone where that is left open and joint ones cannot be, or were not
// meant, and keeps no recent tokens where that is left open and windows are too short for them.
func (o *Options) settleCode(c *checkpoint.Checkpoint) {
	if o.Joint == nil {
		return
	}
	if o.Joint.OrKeys {
		o.settleKeys(c)
	}
	if o.Joint != nil && o.recentOpen() && o.Policy.CheckContext(o.Ctx) != nil {
		o.Policy.Recent = 0
		o.settled = fmt.Sprintf("windows of %d tokens are short: no recent tokens are kept", o.Ctx)
	}
}

// settleSpan says which layers have heads that are longer than a group may be.
func (o *Options) settleSpan(c *family.Config) {
	if o.Joint == nil {
		return
	}
	divided := o.Joint.Divided(c)
	if len(divided) == 0 {
		return
	}
	y := &c.Layers[divided[0]]
	note := fmt.Sprintf("keys and values of %d of %d layers are in groups of their own: layer %d has %d and %d numbers a head, "+
		"more than %d together (--span)", len(divided), len(c.Layers), divided[0], y.HeadDim, y.ValueDim, o.Joint.Span)
	if o.settled != "" {
		note = o.settled + "; " + note
	}
	o.settled = note
}

// recentOpen says whether how many recent tokens are kept was left open.
func (o *Options) recentOpen() bool { return o.Joint.OrNoRecent && o.Policy.Recent == JointRecent }

// settleKeys is settleCode where the code was not chosen.
func (o *Options) settleKeys(c *checkpoint.Checkpoint) {
	_, err := bits.JointGroups(c.Config, o.Joint.GroupOptions)
	if err == nil {
		err = ownValues(c)
	}
	switch {
	case o.Cache != nil || o.Code != codec.Frame || o.Bits != 1 || o.Policy.Exceptions > 0 || o.Alloc == bits.AllocAngle:
		o.codeKeys("")
	case err != nil:
		o.codeKeys(plain(err))
	}
}

// ownValues says why keys and values of an architecture cannot be coded together.
func ownValues(c *checkpoint.Checkpoint) error {
	if c.Graph == nil {
		return nil
	}
	for _, x := range c.Graph.Caches {
		if x.ValueDim == 0 {
			return fmt.Errorf("values of layer %d of architecture %s are a part of its keys (MLA)", x.Block,
				c.Graph.Architecture)
		}
	}
	return nil
}

// codeKeys codes keys alone, for a reason that is worth knowing or for none.
func (o *Options) codeKeys(why string) {
	if o.recentOpen() {
		o.Policy.Recent = 0
	}
	o.Joint = nil
	if o.settled = ""; why != "" {
		o.settled = "keys alone are coded, head by head: " + why
	}
}

// plain words a mistake in options that nobody named: fields have names that a reader knows.
func plain(err error) string {
	var e *option.Error
	if errors.As(err, &e) {
		switch e.Field {
		case "CalibrationTokens":
			return e.Describe("calibration tokens")
		case "Span":
			return e.Describe("span")
		}
	}
	return err.Error()
}

// openSource opens the source as the engine that computes it can.
func (o *Options) openSource(ctx context.Context) (*checkpoint.Checkpoint, error) {
	if o.Engines == nil {
		return checkpoint.Open(o.Source)
	}
	return o.Engines.Source(ctx, o.Source)
}

// differentiable says why errors of joint codes cannot be weighed by gradients.
func (o *Options) differentiable(c *checkpoint.Checkpoint) error {
	if !o.own() {
		return errors.New("llama.cpp gives no gradients")
	}
	return refmodel.Differentiable(c.Config)
}

// own says whether the own pass computes.
func (o *Options) own() bool { return engine.IsOwn(o.Engines) }

// settleEngine refuses what another engine than the own pass cannot do.
func (o *Options) settleEngine(c *checkpoint.Checkpoint) error {
	if o.own() {
		return nil
	}
	const who = "the engine on llama.cpp"
	switch {
	case c.Container != checkpoint.GGUF:
		return option.Errorf("%s: %s reads GGUF files; make one of it first", c.Path, who)
	case len(o.Formats) != 1 || o.Formats[0] != checkpoint.GGUF:
		return option.Bad("Formats", nil, "%s writes GGUF files", who)
	case o.Joint != nil && (o.Joint.ChooseAnchor || o.Joint.ChooseSpan):
		return option.Bad("Trade", nil, "%s does not try spans and anchors; name --span and --anchor", who)
	case o.Alloc != "" && o.Alloc != bits.AllocUniform:
		return option.Bad("Alloc", o.Alloc, "%s spreads signs evenly", who)
	case o.FFN != plan.FFNNone:
		return option.Bad("FFN", string(o.FFN), "%s computes stored types, and has none to emulate", who)
	case o.ReportDetail:
		return option.Bad("ReportDetail", nil, "%s does not measure single layers, other codes or other contexts", who)
	}
	if o.Joint != nil {
		if err := ownValues(c); err != nil {
			return option.Bad("Code", spec.CodeJoint, "%v; take frame or another code of keys alone", err)
		}
	}
	if o.Policy.Recent > 0 {
		o.notice(verify.OneByOne(o.Policy.Recent))
	}
	o.Alloc = bits.AllocUniform
	return o.settleGraph(c)
}

// settleGraph refuses what the graph of an architecture that the table of families lacks does not admit.
func (o *Options) settleGraph(c *checkpoint.Checkpoint) error {
	if c.Graph == nil {
		return nil
	}
	var rope *spec.GraphCache // the first cache whose keys turn
	for l := range c.Graph.Caches {
		x := &c.Graph.Caches[l]
		if err := o.checkEdits(c, x); err != nil {
			return err
		}
		if o.Policy.Anchor == 0 {
			continue
		}
		if x.RopeUnknown {
			return option.Bad("Anchor", o.Policy.Anchor, "layer %d of architecture %s turns keys in a way that has no "+
				"parameters here, so they cannot be turned back to an anchor; take 0", x.Block, c.Graph.Architecture)
		}
		if rope == nil && x.Rope != nil {
			rope = x
		}
		if x.Rope != nil && !reflect.DeepEqual(x.Rope, rope.Rope) {
			return option.Bad("Anchor", o.Policy.Anchor, "layers %d and %d of architecture %s turn keys differently, and a "+
				"sidecar of such a model tells one kind; take 0", rope.Block, x.Block, c.Graph.Architecture)
		}
	}
	return nil
}

// checkEdits refuses stock cache types for which nothing can be edited in the layer of a cache.
func (o *Options) checkEdits(c *checkpoint.Checkpoint, x *spec.GraphCache) error {
	if o.Cache == nil || o.WeightEdits == plan.EditsNone {
		return nil
	}
	// The statistics turn keys and meet values, whatever is edited.
	part, typ, why, instead := "value", o.Cache.V, "", ""
	switch err := transform.CheckValueTransform(c.Config); {
	case x.ValueDim == 0:
		why = x.FixedValues
	case x.RopeUnknown:
		why = x.FixedKeys
	case err != nil:
		why = err.Error()
	}
	if o.Cache.K.Quantized() {
		if why == "" {
			instead = "--cache-type-k f16 for values alone, or "
		}
		part, typ, why = "key", o.Cache.K, x.FixedKeys
	}
	if why == "" {
		return nil
	}
	return option.Errorf("%s: architecture %s, layer %d: nothing can be edited for a %s cache of type %s: %s; take "+
		"%sno cache types for 1-bit codes", c.Path, c.Graph.Architecture, x.Block, part, kvcache.TypeName(typ), why, instead)
}

// settleCache does what settle does for the stock cache types.
func (o *Options) settleCache(c *family.Config) error {
	if o.Cache == nil {
		return nil
	}
	if _, err := kvcache.NewLlamaCpp(c, *o.Cache); err != nil {
		return option.Of("Cache", nil, err)
	}
	most := maxContext
	if c.Context > 0 {
		most = min(most, c.Context)
	}
	if o.TargetCtx == 0 {
		o.TargetCtx = min(defaultTargetCtx, most)
	}
	if o.TargetCtx < minContext || o.TargetCtx > most {
		return option.Bad("TargetCtx", o.TargetCtx, "expected %d to %d, the model's context", minContext, most)
	}
	if o.CacheTokens < 0 {
		return option.Bad("CacheTokens", o.CacheTokens, "it cannot be negative")
	}
	return nil
}

// settleWeights does what settle does for the weight type.
func (o *Options) settleWeights(c *checkpoint.Checkpoint) error {
	if o.FFN == "" {
		o.FFN = plan.FFNNone
	}
	if _, err := plan.ParseFFN(string(o.FFN)); err != nil {
		return err
	}
	switch {
	case o.FFN == plan.FFNNone && o.Imatrix != "":
		return option.Bad("Imatrix", o.Imatrix, "it goes with --ffn scale or auto")
	case o.FFN == plan.FFNNone && o.Weights == nil:
		return nil
	case o.FFN == plan.FFNNone:
		return option.Bad("Weights", o.Weights.Name, "it goes with --ffn scale, rotate or auto")
	case o.Weights == nil:
		return option.Bad("FFN", string(o.FFN), "name the type that the weights will have with --weights: %s", quantweights.Names())
	case o.OutType == "q8_0":
		return option.Bad("OutType", o.OutType, "llama-quantize takes f32, f16 or bf16")
	}
	for _, t := range c.Tensors() {
		if typ, err := gguf.ParseType(t.Type); err == nil && typ.Quantized() {
			return option.Bad("FFN", string(o.FFN), "tensor %s is quantised already (%s); take the float checkpoint", t.Name, t.Type)
		}
	}
	if err := o.readImatrix(c); err != nil {
		return err
	}
	_, head := c.Find("output.weight")
	if _, err := o.Weights.Types(c.Config, c, head); err != nil {
		return option.Bad("Weights", o.Weights.Name, "%v", err)
	}
	if o.CacheTokens < 0 {
		return option.Bad("CacheTokens", o.CacheTokens, "it cannot be negative")
	}
	return plan.CheckFFN(c, o.FFN)
}

// readImatrix reads the importance matrix, if one is named, for the weight type.
func (o *Options) readImatrix(c *checkpoint.Checkpoint) error {
	switch {
	case o.Imatrix == "":
		return nil
	case o.FFN == plan.FFNRotate:
		return option.Bad("Imatrix", o.Imatrix, "an importance matrix of the source says nothing about a rotated stream; make one of the rotated model")
	}
	t := *o.Weights
	var err error
	if t.Importance, err = quantweights.ReadImportance(o.Imatrix, c.Config, c); err != nil {
		return option.Of("Imatrix", o.Imatrix, err)
	}
	o.Weights = &t
	return nil
}

// Bounds of contexts: a window must be scored, and indices are 32 bits wide.
const (
	minContext = 16
	maxContext = 1 << 24
)

// checkTexts refuses texts and windows that measure nothing.
func checkTexts(calibration, evaluation ppl.Text, tokens, ctx, chunks int) error {
	switch {
	case ctx < minContext || ctx > maxContext:
		return option.Bad("Ctx", ctx, "expected %d to %d tokens", minContext, maxContext)
	case chunks < 0:
		return option.Bad("Chunks", chunks, "it cannot be negative")
	case tokens < ctx:
		return option.Bad("CalibrationTokens", tokens, "it does not fill one window of context %d", ctx)
	case calibration.SHA256() == evaluation.SHA256():
		return option.Errorf("calibration and evaluation text are the same (%s); numbers on fitted text mean nothing",
			calibration.Name)
	}
	return nil
}

// newOnly refuses a folder that is there and not empty.
func newOnly(out string) error {
	if strings.TrimSpace(out) == "" {
		return option.Bad("Out", nil, "name the folder to create")
	}
	if entries, err := os.ReadDir(out); err == nil {
		if len(entries) > 0 {
			return option.Errorf("%s exists and is not empty; name a new folder", out)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return option.Errorf("%s: %v", out, err)
	} else if _, err := os.Lstat(out); err == nil {
		return option.Errorf("%s is a link to a folder that does not exist; make that folder first", out)
	}
	return nil
}

// keys returns how keys are coded.
func (o *Options) keys() plan.KeyOptions {
	return plan.KeyOptions{Code: o.Code, Bits: o.Bits, Alloc: o.Alloc, Policy: o.Policy, Joint: o.Joint}
}

// planned returns what the plan needs to know.
func (o *Options) planned() plan.Options {
	p := plan.Options{Formats: o.Formats, PairScale: o.Balance, WeightEdits: o.WeightEdits, Cache: o.Cache, FFN: o.FFN}
	if o.Weights != nil {
		p.Weights = o.Weights.Name
	}
	return p
}

func (o *Options) notice(text string) {
	if o.Notice != nil && text != "" {
		o.Notice(text)
	}
}
