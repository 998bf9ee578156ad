package calibrate

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations"
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

func allot(t *testing.T, w refmodel.Weights, c *checkpoint.Checkpoint, alloc string, threads int) [][]int {
	t.Helper()
	o := fitOptions()
	o.Threads = threads
	signs, err := Allot(context.Background(), refmodel.New(c.Config, w, threads), windows(c.Config, 3, 24), alloc, o)
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
	c := open(t, "llama", tiny.Options{Seed: 1, Layers: 3, HeadDim: 32})
	heads := c.Config.Layers * c.Config.KVHeads
	budget, err := rotations.Budget(1.5, c.Config.HeadDim, heads)
	if err != nil {
		t.Fatal(err)
	}
	for _, alloc := range Allocs {
		one, two := allot(t, c, c, alloc, 1), allot(t, c, c, alloc, 2)
		if !reflect.DeepEqual(one, two) {
			t.Errorf("%s: %v with one thread, %v with two", alloc, one, two)
		}
		if len(one) != c.Config.Layers || sum(one) != budget {
			t.Errorf("%s: %v, want %d signs in all", alloc, one, budget)
		}
	}
	o := fitOptions()
	o.Balance = false
	plain, err := Allot(context.Background(), refmodel.New(c.Config, c, 2), windows(c.Config, 1, 24), AllocSensitivity, o)
	if err != nil || sum(plain) != budget {
		t.Errorf("without balance, one window: %v, %v", plain, err)
	}
	quiet := allot(t, silent{c, "blk.1.attn_output.weight"}, c, AllocSensitivity, 2)
	for l, row := range quiet {
		for h, b := range row {
			// One word, the least; all alike they would have a word and a half.
			if l == 1 && b != 32 {
				t.Errorf("layer %d, head %d has %d signs and does nothing: %v", l, h, b, quiet)
			}
		}
	}
	m := refmodel.New(c.Config, c, 1)
	if _, err := Allot(context.Background(), m, windows(c.Config, 3, 24), "fair", o); err == nil || !strings.Contains(err.Error(), "fair") {
		t.Errorf("an unknown way: %v", err)
	}
	if _, err := Allot(context.Background(), m, nil, AllocAngle, o); err == nil {
		t.Error("no text: no error")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, alloc := range Allocs[1:] {
		if _, err := Allot(ctx, m, windows(c.Config, 3, 24), alloc, o); !errors.Is(err, context.Canceled) {
			t.Errorf("%s, cancelled: %v", alloc, err)
		}
	}
}

// TestWorkSigns: an allotment reads back as it was kept, and nothing else does.
func TestWorkSigns(t *testing.T) {
	c := open(t, "llama", tiny.Options{Seed: 1, Layers: 2})
	w := work(t, c, fitOptions())
	if _, err := w.ReadSigns(2, 64); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	row := make([]int, c.Config.KVHeads)
	for h := range row {
		row[h] = 8 * (h + 1)
	}
	signs := [][]int{row, row}
	if err := w.SaveSigns(signs); err != nil {
		t.Fatal(err)
	}
	got, err := w.ReadSigns(2, sum(signs))
	if err != nil || !reflect.DeepEqual(got, signs) {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := w.ReadSigns(2, sum(signs)+8); err == nil {
		t.Error("another budget: no error")
	}
	if _, err := w.ReadSigns(3, sum(signs)); err == nil {
		t.Error("another number of layers: no error")
	}
	other := *w
	other.Inputs = []Input{{"program", "test"}, {"seed", "4"}}
	if _, err := other.ReadSigns(2, sum(signs)); err == nil || !strings.Contains(err.Error(), "seed is 3 there and 4 here") {
		t.Errorf("other inputs: %v", err)
	}
	path := filepath.Join(w.Dir, "allot.json")
	for _, bad := range []string{"", "{}", "[]", strings.Repeat("[", 1000), `{"inputs":[{"name":"program","value":"test"},{"name":"seed","value":"3"}],"signs":[[-8,8],[8,8]]}`,
		`{"inputs":[{"name":"program","value":"test"},{"name":"seed","value":"3"}],"signs":[[7,9],[8,8]]}`} {
		if err := os.WriteFile(path, []byte(bad), 0o666); err != nil {
			t.Fatal(err)
		}
		if got, err := w.ReadSigns(2, 32); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%.30q: %v, %v", bad, got, err)
		}
	}
	if err := w.Remove(2); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(w.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}
