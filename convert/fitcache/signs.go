package fitcache

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/phaseconv/phaseconv/format/atomicfile"
	"github.com/phaseconv/phaseconv/format/jsonx"
	"github.com/phaseconv/phaseconv/rotations/codec"
)

// allotName is the file of a work folder that says how signs were allotted.
const allotName = "allot.json"

type allotFile struct {
	Inputs []Input `json:"inputs"`
	Signs  [][]int `json:"signs"`
}

func (w *Cache) signsPath() string { return filepath.Join(w.Dir, allotName) }

// ReadSigns returns the allotment that a work folder has for w.Inputs, which must
// sum up to total. The error says why there is none that can be used; it is
// fs.ErrNotExist when there is no file.
func (w *Cache) ReadSigns(layers, total int) ([][]int, error) {
	signs, err := w.readSigns(layers, total)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", w.signsPath(), err)
	}
	return signs, err
}

func (w *Cache) readSigns(layers, total int) ([][]int, error) {
	st, err := os.Stat(w.signsPath())
	if err != nil {
		return nil, err
	}
	most := 0 // codes of a layer
	for l := range layers {
		most = max(most, w.codes(l))
	}
	if !st.Mode().IsRegular() || st.Size() > maxInputs+int64(16*layers*(most+1)) {
		return nil, fmt.Errorf("not an allotment of %d layers with up to %d codes", layers, most)
	}
	raw, err := os.ReadFile(w.signsPath())
	if err != nil {
		return nil, err
	}
	var f allotFile
	if err := jsonx.Unmarshal(raw, &f); err != nil {
		return nil, err
	}
	have, err := json.Marshal(f.Inputs)
	if err != nil {
		return nil, err
	}
	if err := w.sameInputs(string(have)); err != nil {
		return nil, err
	}
	sum, ok := 0, len(f.Signs) == layers
	for l, heads := range f.Signs {
		ok = ok && l < layers && len(heads) == w.codes(l)
		for _, b := range heads {
			ok = ok && b >= 8 && b%8 == 0 && b <= codec.MaxBits
			sum += b
		}
	}
	if !ok || sum != total {
		return nil, fmt.Errorf("not an allotment of %d signs to %d layers with up to %d codes", total, layers, most)
	}
	return f.Signs, nil
}

// codes returns how many codes layer l has.
func (w *Cache) codes(l int) int {
	switch {
	case l >= len(w.Config.Layers):
		return 0
	case w.Groups != nil:
		return len(w.Groups[l])
	}
	return w.Config.OwnKVHeads(l)
}

// SaveSigns keeps an allotment, beside the layers that will be fitted with it.
func (w *Cache) SaveSigns(signs [][]int) error {
	if w.Check != nil {
		if err := w.Check(); err != nil {
			return err
		}
	}
	b, err := json.Marshal(allotFile{w.Inputs, signs})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(w.Dir, 0o777); err != nil {
		return err
	}
	return atomicfile.WriteFile(w.signsPath(), append(b, '\n'))
}
