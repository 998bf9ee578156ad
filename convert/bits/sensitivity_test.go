package bits

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// silent is a model whose attention in one layer writes nothing.
type silent struct {
	*checkpoint.Checkpoint
	tensor string
}

func (s silent) ReadRows(t *checkpoint.Tensor, row0, n int, dst []float32) error {
	if t.Name == s.tensor {
		clear(dst)
		return nil
	}
	return s.Checkpoint.ReadRows(t, row0, n, dst)
}

func allotAngles(t *testing.T, w checkpoint.Weights, c *checkpoint.Checkpoint, alloc Alloc, threads int) [][]int {
	t.Helper()
	o := surveyOptions()
	o.Threads = threads
	signs, err := Allocate(context.Background(), refmodel.New(c.Config, w, threads), tiny.Windows(c.Config, 3, 24), alloc,
		o)
	if err != nil {
		t.Fatal(err)
	}
	return signs
}

func sum(signs [][]int) (n int) {
	for _, heads := range signs {
		for _, b := range heads {
			n += b
		}
	}
	return n
}

// TestAllot: every way of spreading signs spends the budget exactly and finds the
// same with any number of threads; and a layer that cannot do harm gets least.
func TestAllot(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Seed: 1, Layers: 3, HeadDim: 32})
	budget, err := codec.Budget(1.5, c.Config.CachedDims()...)
	if err != nil {
		t.Fatal(err)
	}
	for _, alloc := range Allocs {
		one, two := allotAngles(t, c, c, alloc, 1), allotAngles(t, c, c, alloc, 2)
		if !reflect.DeepEqual(one, two) {
			t.Errorf("%s: %v with one thread, %v with two", alloc, one, two)
		}
		if len(one) != len(c.Config.Layers) || sum(one) != budget {
			t.Errorf("%s: %v, want %d signs in all", alloc, one, budget)
		}
	}
	o := surveyOptions()
	o.Balance = false
	plain, err := Allocate(context.Background(), refmodel.New(c.Config, c, 2), tiny.Windows(c.Config, 1, 24),
		AllocSensitivity, o)
	if err != nil || sum(plain) != budget {
		t.Errorf("without balance, one window: %v, %v", plain, err)
	}
	quiet := allotAngles(t, silent{c, "blk.1.attn_output.weight"}, c, AllocSensitivity, 2)
	for l, row := range quiet {
		for h, b := range row {
			// One word, the least; all alike they would have a word and a half.
			if l == 1 && b != 32 {
				t.Errorf("layer %d, head %d has %d signs and does nothing: %v", l, h, b, quiet)
			}
		}
	}
	m := refmodel.New(c.Config, c, 1)
	if _, err := Allocate(context.Background(), m, tiny.Windows(c.Config, 3, 24), "fair", o); err == nil ||
		!strings.Contains(err.Error(), "fair") {
		t.Errorf("an unknown way: %v", err)
	}
	if _, err := Allocate(context.Background(), m, nil, AllocAngle, o); err == nil {
		t.Error("no text: no error")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, alloc := range Allocs[1:] {
		if _, err := Allocate(ctx, m, tiny.Windows(c.Config, 3, 24), alloc, o); !errors.Is(err, context.Canceled) {
			t.Errorf("%s, cancelled: %v", alloc, err)
		}
	}
}

// surveyOptions fit a small model with everything that a layer can have.
func surveyOptions() Options {
	return Options{Bits: 1.5, Policy: kvcache.Policy{Anchor: 8, Sink: 2}, Balance: true, Seed: 3, Threads: 2}
}
