package fitcache

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/internal/tiny"
)

// TestWorkSigns: an allotment reads back as it was kept, and nothing else does.
func TestWorkSigns(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Seed: 1, Layers: 2})
	w := work(t, c, fitOptions())
	if _, err := w.ReadSigns(2, 64); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	row := make([]int, c.Config.Layers[0].KVHeads)
	for h := range row {
		row[h] = 8 * (h + 1)
	}
	signs := [][]int{row, row}
	total := 2 * 8 * (1 + c.Config.Layers[0].KVHeads) * c.Config.Layers[0].KVHeads / 2
	if err := w.SaveSigns(signs); err != nil {
		t.Fatal(err)
	}
	got, err := w.ReadSigns(2, total)
	if err != nil || !reflect.DeepEqual(got, signs) {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := w.ReadSigns(2, total+8); err == nil {
		t.Error("another budget: no error")
	}
	if _, err := w.ReadSigns(3, total); err == nil {
		t.Error("another number of layers: no error")
	}
	other := *w
	other.Inputs = []Input{{"program", "test"}, {"seed", "4"}}
	if _, err := other.ReadSigns(2, total); err == nil || !strings.Contains(err.Error(), "seed is 3 there and 4 here") {
		t.Errorf("other inputs: %v", err)
	}
	path := filepath.Join(w.Dir, "allot.json")
	for _, bad := range []string{"", "{}", "[]", strings.Repeat("[", 1000),
		`{"inputs":[{"name":"program","value":"test"},{"name":"seed","value":"3"}],"signs":[[-8,8],[8,8]]}`,
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
