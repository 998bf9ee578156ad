package convert

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/convert/bits"
	"github.com/phaseconv/phaseconv/convert/calibrate"
	"github.com/phaseconv/phaseconv/convert/fitcache"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// alloc names how signs are spread.
func (o *Options) alloc() string {
	if o.Alloc == "" {
		return bits.AllocUniform
	}
	return o.Alloc
}

// checkSigns refuses numbers of signs that no code can have.
func (o *Options) checkSigns(c *family.Config) error {
	if !slices.Contains(bits.Allocs, o.alloc()) {
		return usage("--alloc %q: expected %s", o.Alloc, strings.Join(bits.Allocs, ", "))
	}
	if o.Code != "frame" && o.Bits != 1 {
		return usage("code %s has 1 bit per number; only frame takes --bits %g", o.Code, o.Bits)
	}
	if o.Code != "frame" && o.alloc() != bits.AllocUniform {
		return usage("code %s has 1 bit per number in every head; only frame takes --alloc %s", o.Code, o.Alloc)
	}
	if _, err := bits.Budget(c, o.Bits); err != nil {
		return usage("--bits: %v", err)
	}
	return nil
}

// allot decides about signs before anything is fitted. With a work folder w, which
// may be nil, it takes the allotment that is there or leaves its own, so that all
// units fit to the same one; each would find the same by itself.
func (o *Options) allot(ctx context.Context, m *refmodel.Model, w *fitcache.Cache, windows [][]int32, opt calibrate.Options) ([][]int, error) {
	c := m.Config
	if o.Code != "frame" || o.alloc() == bits.AllocUniform {
		return bits.Even(c, opt.Bits)
	}
	if w != nil {
		total, err := bits.Budget(c, opt.Bits)
		if err != nil {
			return nil, err
		}
		signs, err := w.ReadSigns(len(c.Layers), total)
		switch {
		case err == nil:
			return signs, nil
		case o.Merge && !slices.ContainsFunc(layers(len(c.Layers)), func(l int) bool { return there(w.Path(l)) }):
			return nil, complete(w, len(c.Layers))
		case o.Merge:
			return nil, fmt.Errorf("the units' allotment of signs is not there; run them, or convert with --resume: %w", err)
		case !errors.Is(err, fs.ErrNotExist) && o.Notice != nil:
			o.Notice(fmt.Sprintf("%v; signs are allotted again", err))
		}
	}
	opt.Progress = o.Progress.Of("allotting signs")
	signs, err := bits.Allocate(ctx, m, windows, o.alloc(), opt.Allocation())
	if err == nil && w != nil {
		err = w.SaveSigns(signs)
	}
	return signs, err
}

func layers(n int) []int {
	out := make([]int, n)
	for l := range out {
		out[l] = l
	}
	return out
}

func signsDigest(signs [][]int) string {
	sum := sha256.Sum256([]byte(fmt.Sprint(signs)))
	return hex.EncodeToString(sum[:])
}

// meanBits returns the signs per number of a fitted code, over all heads.
func meanBits(fit *calibrate.Result, code string) float64 {
	signs, numbers := 0, 0
	for _, layer := range fit.Layers {
		for _, h := range layer.Heads {
			signs, numbers = signs+h.Codes[code].B, numbers+h.Codes[code].D
		}
	}
	return float64(signs) / float64(numbers)
}
