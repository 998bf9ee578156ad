package plan

import (
	"fmt"
	"math"
	"slices"

	"github.com/phaseconv/phaseconv/convert/bits"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/option"
)

// Keys is what a coded token will take, over all layers and heads.
type Keys struct {
	Code       codec.Kind `json:"code"`
	Bits       float64    `json:"bits"` // signs per number, on average
	Alloc      bits.Alloc `json:"alloc"`
	Spread     string     `json:"spread"` // what Alloc means here
	Signs      int        `json:"signs"`
	Exceptions int        `json:"exceptions"` // per key
	// Parts, of joint codes, is what they hold, Groups how many there are in all layers, GroupDim
	// the numbers of the longest vector.
	Parts    bits.Parts `json:"parts,omitempty"`
	Groups   int        `json:"groups,omitempty"`
	GroupDim int        `json:"group_dim,omitempty"`
	// CodeName is the --code that makes such codes, see spec.VerifyJSON; Pairs is that of Joint.
	CodeName string `json:"code_name"`
	Pairs    bool   `json:"pairs,omitempty"`
	// KeyShare and ValueShare are the parts of all signs that keys, and values, of joint codes are decoded
	// from; absent where all serve both.
	KeyShare   float64 `json:"key_share,omitempty"`
	ValueShare float64 `json:"value_share,omitempty"`
	// MeasuredChoices are the options that measurements will choose: the plan has what they start from.
	MeasuredChoices []string `json:"measured_choices,omitempty"`
	// Bytes of signs, scales and exceptions. Signs are stored in words of 32, so
	// heads that do not fill their last word take more: 3 bytes at most each.
	Bytes int `json:"bytes"`
}

// KeyOptions say how keys are coded.
type KeyOptions struct {
	Code   codec.Kind
	Bits   float64    // signs per number, on average over all heads
	Alloc  bits.Alloc // how they are spread over heads, one of bits.Allocs; "" takes the default of the code
	Policy kvcache.Policy
	// Joint, if set, is how keys and values are coded together: with frames, and Bits has no
	// say.
	Joint *Joint
}

// Joint says how keys and values are coded together.
type Joint struct {
	bits.GroupOptions
	// Fisher takes the metric of errors from gradients of the model's own loss instead of from
	// queries: a backward pass over half of the calibration windows more. Measured, it lowers the
	// divergence by a tenth to a quarter (docs/codes.md).
	Fisher bool
	// ChooseSpan and ChooseAnchor let measurements on the calibration text decide about these two:
	// bits.Choose trades divergence against decode cost. Span is then the most that is looked at.
	ChooseSpan, ChooseAnchor bool
	// IfAble falls back to queries where a layer has no backward pass, instead of refusing it.
	IfAble bool
	// OrKeys says that the code was not chosen: keys alone are coded, head by head, where options ask for
	// what only those codes have, where weights are changed for a stock cache, which is another way to a
	// small cache, and where a model has no joint codes.
	OrKeys bool
	// OrNoRecent says that the recent tokens were not chosen: none are kept where keys alone are coded, or
	// where windows are too short to keep any.
	OrNoRecent bool
}

// Allocation returns how signs are spread: Alloc, or the way that measures best where it is
// empty (docs/codes.md). Only frames have a choice.
func (o KeyOptions) Allocation() bits.Alloc {
	switch {
	case o.Alloc != "":
		return o.Alloc
	case o.Joint != nil:
		return bits.AllocUniform
	case o.Code == codec.Frame:
		return bits.AllocSensitivity
	}
	return bits.AllocUniform
}

// check refuses what no code can have.
func (o KeyOptions) check(c *family.Config) error {
	if _, err := codec.ParseKind(string(o.Code)); err != nil {
		return option.Of("Code", o.Code, err)
	}
	if _, err := bits.ParseAlloc(string(o.Allocation())); err != nil {
		return option.Of("Alloc", o.Alloc, err)
	}
	switch {
	case o.Joint != nil && o.Code != codec.Frame:
		return option.Bad("Code", o.Code, "joint codes are frames")
	case o.Joint != nil && o.Allocation() == bits.AllocAngle:
		return option.Bad("Alloc", o.Alloc, "joint codes spread signs over layers evenly or by sensitivity")
	case o.Joint != nil && o.Policy.Exceptions != 0:
		return option.Bad("Exceptions", o.Policy.Exceptions, "joint codes have none")
	case o.Code != codec.Frame && o.Bits != 1:
		return option.Bad("Bits", o.Bits, "code %s has 1 bit per number; only frame takes another number", o.Code)
	case o.Code != codec.Frame && o.Allocation() != bits.AllocUniform:
		return option.Bad("Alloc", o.Alloc, "code %s has 1 bit per number in every head; only frame has a choice", o.Code)
	}
	if !c.Alike() && o.Policy.Exceptions != 0 {
		return option.Bad("Exceptions", o.Policy.Exceptions, "the heads of this model's layers differ, and the codes of such a "+
			"model have none")
	}
	if _, err := bits.Budget(c, o.Bits); err != nil && o.Joint == nil {
		return option.Of("Bits", nil, err)
	}
	return o.Policy.Check(slices.Min(c.CachedDims()))
}

// NewKeys says what is known of the codes of a model before the calibration. It refuses, with
// an *option.Error, what no code can have.
func NewKeys(c *family.Config, o KeyOptions) (Keys, error) {
	k := Keys{Code: o.Code, CodeName: string(o.Code), Alloc: o.Allocation(), Exceptions: o.Policy.Exceptions}
	if err := o.check(c); err != nil {
		return k, err
	}
	if o.Joint != nil {
		return newJoint(c, o, k)
	}
	dims := c.CachedDims()
	numbers := 0
	for _, d := range dims {
		numbers += d
	}
	var err error
	if k.Signs, err = bits.Budget(c, o.Bits); err != nil {
		return k, err
	}
	k.Bits = float64(k.Signs) / float64(numbers)
	k.Bytes = k.Signs/8 + len(dims)*(2+codec.ExceptionBytes*k.Exceptions)
	even := bits.EvenSigns(k.Signs, dims)
	switch lo, hi := slices.Min(even), slices.Max(even); {
	case k.Alloc != bits.AllocUniform:
		k.Spread = "spread over heads by the calibration (" + string(k.Alloc) + ")"
	case lo == hi:
		k.Spread = fmt.Sprintf("%d for each head", lo)
	default:
		k.Spread = fmt.Sprintf("%d or %d for each head", lo, hi)
		if !c.Alike() {
			k.Spread = fmt.Sprintf("%d to %d for each head, by its length", lo, hi)
		}
	}
	return k, nil
}

// newJoint is NewKeys for joint codes.
func newJoint(c *family.Config, o KeyOptions, k Keys) (Keys, error) {
	g, err := bits.JointGroups(c, o.Joint.GroupOptions)
	if err != nil {
		return k, err
	}
	numbers, layers := 0, 0
	k.CodeName, k.Parts, k.Pairs = spec.CodeJoint, o.Joint.Parts, o.Joint.Pairs
	if o.Joint.ChooseSpan {
		k.MeasuredChoices = append(k.MeasuredChoices, "span")
	}
	if o.Joint.ChooseAnchor {
		k.MeasuredChoices = append(k.MeasuredChoices, "anchor")
	}
	lo, hi := math.MaxInt, 0
	for l, signs := range g.Signs {
		y := &c.Layers[l]
		if len(signs) == 0 {
			continue
		}
		for _, parts := range g.Parts[l] {
			numbers += codec.PartsDim(parts, y.HeadDim, y.ValueDim)
		}
		k.Groups += len(signs)
		layers++
		lo, hi = min(lo, slices.Min(signs)), max(hi, slices.Max(signs))
	}
	switch divided := len(o.Joint.Divided(c)); {
	case divided == layers:
		k.Parts = bits.PartsApart
	case divided > 0:
		k.Parts = bits.PartsMixed
	}
	k.Signs, k.Bytes = g.Total()
	k.Bits = float64(k.Signs) / float64(numbers)
	k.GroupDim, _ = g.Largest(c)
	switch keys, values := g.Used(); {
	case keys < k.Signs || values < k.Signs:
		k.KeyShare, k.ValueShare = float64(keys)/float64(k.Signs), float64(values)/float64(k.Signs)
	case !o.Joint.Shares.Whole():
		return k, option.Bad("KeyShare", o.Joint.Shares.Key, "with %g for values, all signs would still serve both: shares are of "+
			"words of 32, in groups that hold keys and values", o.Joint.Shares.Value)
	}
	if k.Spread = fmt.Sprintf("%d for each group", lo); lo != hi {
		k.Spread = fmt.Sprintf("%d to %d for each group", lo, hi)
	}
	if k.Alloc == bits.AllocSensitivity {
		k.Spread = "spread over layers by the calibration (" + string(k.Alloc) + ")"
	}
	return k, nil
}
