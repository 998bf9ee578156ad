package safetensors

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// IndexName and SingleName are the file names of a Hugging Face checkpoint.
const (
	IndexName  = "model.safetensors.index.json"
	SingleName = "model.safetensors"
)

// A Set is all shards of one checkpoint folder.
type Set struct {
	Dir    string
	Files  []*File // sorted by name
	Index  []byte  // the raw index file, nil for a single file
	byName map[string]Ref
}

// A Ref is a tensor together with the file that holds it.
type Ref struct {
	File   *File
	Tensor *Tensor
}

// OpenDir opens the checkpoint in dir: the shards that the index names, or
// model.safetensors. Every tensor must be where the index says.
func OpenDir(dir string) (*Set, error) {
	s := &Set{Dir: dir, byName: map[string]Ref{}}
	path := filepath.Join(dir, IndexName)
	raw, err := readLimited(path, MaxIndex)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		single := filepath.Join(dir, SingleName)
		if _, err := os.Stat(single); err != nil {
			return nil, fmt.Errorf("%s: neither %s nor %s is there; only safetensors checkpoints are read (convert .bin files first)", dir, SingleName, IndexName)
		}
		if err := s.add(single); err != nil {
			return nil, err
		}
		return s, nil
	case err != nil:
		return nil, err
	}
	s.Index = raw
	shardOf, err := parseIndex(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	tensors := sortedKeys(shardOf) // so that of several errors always the same is reported
	shards := map[string]bool{}
	for _, name := range tensors {
		// A path would let an index reach outside its folder.
		file := shardOf[name]
		if file == "" || file == "." || file == ".." || strings.ContainsAny(file, "/\\:\x00") {
			return nil, fmt.Errorf("%s: tensor %s: shard name %q is not a plain file name", path, printable(clip(name)),
				clip(file))
		}
		shards[file] = true
	}
	if len(shards) == 0 {
		return nil, fmt.Errorf("%s: weight_map names no shard", path)
	}
	if len(shards) > MaxShards {
		return nil, fmt.Errorf("%s: %d shards exceed the limit of %d", path, len(shards), MaxShards)
	}
	names := sortedKeys(shards)
	for _, f := range names {
		if err := s.add(filepath.Join(dir, f)); err != nil {
			s.Close()
			if errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("%s: shard %s is missing; download all %d shards: %w", path, f, len(names), err)
			}
			return nil, err
		}
	}
	for _, name := range tensors {
		if r, ok := s.byName[name]; !ok || filepath.Base(r.File.Path) != shardOf[name] {
			s.Close()
			return nil, fmt.Errorf("%s: tensor %s is not in shard %s as the index says", path, printable(clip(name)),
				shardOf[name])
		}
	}
	return s, nil
}

// parseIndex returns the shard of each tensor. The key is looked up in a map
// because a struct would also take another spelling of it, such as WEIGHT_MAP.
func parseIndex(raw []byte) (map[string]string, error) {
	var index map[string]json.RawMessage
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("not a valid index: %w", err)
	}
	var m map[string]string
	if err := json.Unmarshal(index["weight_map"], &m); err != nil {
		return nil, fmt.Errorf("weight_map: not a map from tensor to shard: %w", err)
	}
	return m, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
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
func (s *Set) Names() []string { return sortedKeys(s.byName) }

func readLimited(path string, limit int64) ([]byte, error) {
	if err := checkRegular(path); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: larger than the limit of %d bytes", path, limit)
	}
	return b, nil
}
