package safetensors

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/jsonx"
	"github.com/phaseconv/phaseconv/format/placeholder"
)

// IndexName and SingleName are the file names of a Hugging Face checkpoint.
const (
	IndexName  = "model.safetensors.index.json"
	SingleName = "model.safetensors"
)

// A Set is all shards of one checkpoint folder.
type Set struct {
	Dir   string
	Files []*File // sorted by name
	// Index is the raw index file, nil for a single file. Shards that lie without
	// one get it made.
	Index []byte
	// Notes say what else lies in the folder and was not read.
	Notes  []string
	byName map[string]Ref
}

// A Ref is a tensor together with the file that holds it.
type Ref struct {
	File   *File
	Tensor *Tensor
}

// OpenDir opens the checkpoint in dir: the shards that the index names, or
// model.safetensors, or without either shards that are complete by their names.
// Every tensor must be where the index says. Where loaders would read different
// files, it refuses. Errors about what is in the folder are of kind format.ErrBroken or
// format.ErrUnsupported.
func OpenDir(dir string) (*Set, error) {
	s := &Set{Dir: dir, byName: map[string]Ref{}}
	there, err := look(dir)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, IndexName)
	raw, err := format.ReadFile(path, MaxIndex)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = s.withoutIndex(there)
	case err == nil:
		err = s.withIndex(path, raw, there)
	}
	if err != nil {
		s.Close()
		return nil, format.Broken(err)
	}
	return s, nil
}

func (s *Set) single() error {
	s.Index = nil
	return s.add(filepath.Join(s.Dir, SingleName))
}

func (s *Set) withIndex(path string, raw []byte, there *listing) error {
	if err := placeholder.Check(path, raw); err != nil {
		return err
	}
	shardOf, err := parseIndex(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	tensors := slices.Sorted(maps.Keys(shardOf)) // so that of several errors always the same is reported
	shards := map[string]bool{}
	for _, name := range tensors {
		// A path would let an index reach outside its folder.
		file := shardOf[name]
		if file == "" || file == "." || file == ".." || strings.ContainsAny(file, "/\\:\x00") {
			return fmt.Errorf("%s: tensor %s: shard name %q is not a plain file name", path, printable(clip(name)), clip(file))
		}
		shards[file] = true
	}
	if len(shards) == 0 {
		return fmt.Errorf("%s: weight_map names no shard", path)
	}
	if len(shards) > MaxShards {
		return fmt.Errorf("%s: %d shards exceed the limit of %d", path, len(shards), MaxShards)
	}
	names := slices.Sorted(maps.Keys(shards))
	if use, err := s.besideIndex(path, names, shards, there); err != nil || !use {
		return err
	}
	s.Index = raw
	for _, f := range names {
		if err := s.add(filepath.Join(s.Dir, f)); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s: shard %s is missing; download all %d shards: %w", path, f, len(names), err)
			}
			return err
		}
	}
	for _, name := range tensors {
		if r, ok := s.byName[name]; !ok || filepath.Base(r.File.Path) != shardOf[name] {
			return fmt.Errorf("%s: tensor %s is not in shard %s as the index says", path, printable(clip(name)), shardOf[name])
		}
	}
	return nil
}

// besideIndex looks at what lies beside an index and the shards that it names.
// use is false when model.safetensors was opened instead, because no shard is left.
func (s *Set) besideIndex(path string, names []string, named map[string]bool, there *listing) (use bool, err error) {
	present := 0
	for _, n := range names {
		if there.all[n] {
			present++
		}
	}
	switch single := there.all[SingleName] && !named[SingleName]; {
	case single && present == 0:
		s.Notes = append(s.Notes, fmt.Sprintf("%s is stale: none of its %d shards is there; %s was read instead", IndexName,
			len(names), SingleName))
		return false, s.single()
	case single && present < len(names):
		return false, fmt.Errorf("%s: %d of its %d shards are missing, and %s is there too; to use that, remove the index "+
			"and the shards",
			path, len(names)-present, len(names), SingleName)
	case single:
		return false, fmt.Errorf("%s: %s lies beside the shards that the index names; some loaders read the one and some "+
			"the others, so remove what is not the model",
			path, SingleName)
	}
	var stray []string
	for _, n := range there.shards {
		if !named[n] {
			stray = append(stray, n)
		}
	}
	if len(stray) > 0 {
		s.Notes = append(s.Notes, fmt.Sprintf("%s names the shards that were read; %s lies beside them, and loaders "+
			"without the index would read it too",
			IndexName, some(stray)))
	}
	return true, nil
}

func (s *Set) withoutIndex(there *listing) error {
	switch single := there.all[SingleName]; {
	case single && len(there.shards) > 0:
		return fmt.Errorf("%s: %s and %s are both there; some loaders read the one and some the others, so remove what is "+
			"not the model",
			s.Dir, SingleName, some(there.shards))
	case single:
		return s.single()
	case len(there.shards) == 0:
		return there.nothing()
	}
	of := 0
	for _, n := range there.shards {
		m := shardName.FindStringSubmatch(n)
		k, _ := strconv.Atoi(m[2]) // five digits
		if of != 0 && k != of {
			return fmt.Errorf("%s: %s is missing, and there are shards of %d and of %d; remove what is not the model", s.Dir,
				IndexName, of, k)
		}
		of = k
	}
	if of == 0 || of > MaxShards {
		return fmt.Errorf("%s: %s is missing, and %s is not one of 1 to %d shards", s.Dir, IndexName, there.shards[0],
			MaxShards)
	}
	for i := 1; i <= of; i++ {
		name := fmt.Sprintf("model-%05d-of-%05d.safetensors", i, of)
		if !there.all[name] {
			return fmt.Errorf("%s: shard %s is missing, and %s too; download all %d shards", s.Dir, name, IndexName, of)
		}
		if err := s.add(filepath.Join(s.Dir, name)); err != nil {
			return err
		}
	}
	s.Notes = append(s.Notes, fmt.Sprintf("%s is missing; the %d shards are complete by their names and were read",
		IndexName, of))
	var err error
	s.Index, err = s.makeIndex()
	return err
}

// makeIndex returns the index that the open files should have had.
func (s *Set) makeIndex() ([]byte, error) {
	shardOf := make(map[string]string, len(s.byName))
	var total int64
	for name, r := range s.byName {
		shardOf[name] = filepath.Base(r.File.Path)
		total += r.Tensor.Size()
	}
	out, err := json.MarshalIndent(map[string]any{"metadata": map[string]int64{"total_size": total},
		"weight_map": shardOf}, "", "  ")
	return append(out, '\n'), err
}

// shardName is how libraries name the shards of a checkpoint.
var shardName = regexp.MustCompile(`^model-(\d{5})-of-(\d{5})\.safetensors$`)

// A listing is what lies in a checkpoint folder.
type listing struct {
	dir    string
	all    map[string]bool
	shards []string // by name, sorted
	other  []string // further files of weights
}

func look(dir string) (*listing, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	l := &listing{dir: dir, all: map[string]bool{}}
	for _, e := range entries {
		n := e.Name()
		l.all[n] = true
		switch ext := filepath.Ext(n); {
		case shardName.MatchString(n):
			l.shards = append(l.shards, n)
		case n != SingleName && (ext == ".safetensors" || ext == ".bin" || ext == ".pt" || ext == ".pth"):
			l.other = append(l.other, n)
		}
	}
	return l, nil
}

// nothing says why there is no checkpoint to open.
func (l *listing) nothing() error {
	hint := "the folder has no weights; download them too"
	if len(l.other) > 0 {
		hint = fmt.Sprintf("there is %s; only %s and its shards are read", some(l.other), SingleName)
		switch first := l.other[0]; {
		case l.all["adapter_model.safetensors"]:
			hint = "adapter_model.safetensors is an adapter; merge it into its base model first"
		case filepath.Ext(first) != ".safetensors":
			hint += " (convert .bin files first)"
		default:
			hint += "; rename it if it is the whole model"
		}
	}
	return format.Unsupportedf("%s: neither %s nor %s is there: %s", l.dir, SingleName, IndexName, hint)
}

// some names the first of several files.
func some(names []string) string {
	if len(names) == 1 {
		return printable(clip(names[0]))
	}
	return fmt.Sprintf("%s (%d such files)", printable(clip(names[0])), len(names))
}

// parseIndex returns the shard of each tensor.
func parseIndex(raw []byte) (map[string]string, error) {
	var index struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := jsonx.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("not a valid index: %w", err)
	}
	if index.WeightMap == nil {
		return nil, fmt.Errorf("not a valid index: key weight_map, the map from tensor to shard, is missing")
	}
	return index.WeightMap, nil
}

func (s *Set) add(path string) error {
	f, err := Open(path)
	if err != nil {
		return err
	}
	s.Files = append(s.Files, f)
	for i := range f.Tensors {
		t := &f.Tensors[i]
		if other, dup := s.byName[t.Name]; dup {
			return fmt.Errorf("%s: tensor %s is also in %s", path, printable(t.Name), filepath.Base(other.File.Path))
		}
		s.byName[t.Name] = Ref{f, t}
	}
	return nil
}

// Close closes all shards.
func (s *Set) Close() error {
	var err error
	for _, f := range s.Files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// Find returns a tensor of any shard.
func (s *Set) Find(name string) (Ref, bool) { r, ok := s.byName[name]; return r, ok }

// Names returns all tensor names, sorted.
func (s *Set) Names() []string { return slices.Sorted(maps.Keys(s.byName)) }
