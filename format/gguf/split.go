package gguf

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Keys that describe a split. The first shard holds the model's metadata, each
// shard the tensors that its header lists.
const (
	keySplitNo      = "split.no"
	keySplitCount   = "split.count"
	keySplitTensors = "split.tensors.count"
)

// shardName is the naming rule of llama.cpp: model-00001-of-00003.gguf.
var shardName = regexp.MustCompile(`^(.*)-(\d{5})-of-(\d{5})\.gguf$`)

// ShardPath returns the path of shard i, from 0, of a split into n files of the
// given base path (without ".gguf"), as llama.cpp names them.
func ShardPath(base string, i, n int) string {
	return fmt.Sprintf("%s-%05d-of-%05d.gguf", base, i+1, n)
}

// IsShard says whether a name is that of a file of a split of the file named whole.
func IsShard(name, whole string) bool {
	m := shardName.FindStringSubmatch(name)
	return m != nil && m[1]+".gguf" == whole
}

// Whole returns what the file would be called of whose split name is a part; name itself if it is none.
func Whole(name string) string {
	if m := shardName.FindStringSubmatch(name); m != nil {
		return m[1] + ".gguf"
	}
	return name
}

// SplitKeys returns the keys of file i, from 0, of a split into n files with so many tensors in all.
func SplitKeys(i, n, tensors int) []KV {
	return []KV{Value(keySplitNo, uint16(i)), Value(keySplitCount, uint16(n)), Value(keySplitTensors, int32(tensors))}
}

// splitCount returns the number of files that f belongs to, 1 if it is no split.
func (f *File) splitCount() (int, error) {
	if _, ok := f.KV(keySplitCount); !ok {
		return 1, nil
	}
	n, err := f.Uint(keySplitCount)
	if err != nil {
		return 0, err
	}
	if n > MaxShards {
		return 0, &FormatError{File: f.Path, Key: keySplitCount, Offset: -1,
			Msg: fmt.Sprintf("%d files, at most %d are allowed", n, MaxShards)}
	}
	return max(int(n), 1), nil
}

// openSplit opens a split of n files as one File.
func openSplit(path string, n int) (_ *File, err error) {
	base, err := splitBase(path, n)
	if err != nil {
		return nil, err
	}
	all := &File{Path: path, Shards: n, kvIndex: map[string]int{}, tensorIndex: map[string]int{}}
	defer func() {
		if err != nil {
			all.Close()
		}
	}()
	declared := int64(-1) // how many tensors the first shard promises
	for i := range n {
		f, err := OpenShard(ShardPath(base, i, n))
		if err != nil {
			return nil, fmt.Errorf("file %d of a split of %d: %w", i+1, n, err)
		}
		all.closers = append(all.closers, f.closers...)
		if err := f.checkShard(i, n); err != nil {
			return nil, err
		}
		if i == 0 {
			all.Version, all.Alignment = f.Version, f.Alignment
			if _, ok := f.KV(keySplitTensors); ok { // older writers leave it out
				if declared, err = f.Int(keySplitTensors); err != nil {
					return nil, err
				}
			}
			for _, kv := range f.KVs {
				if !strings.HasPrefix(kv.Key, "split.") {
					all.kvIndex[kv.Key] = len(all.KVs)
					all.KVs = append(all.KVs, kv)
				}
			}
		}
		if len(all.Tensors)+len(f.Tensors) > MaxTensors {
			return nil, &FormatError{File: f.Path, Offset: -1, Msg: fmt.Sprintf("the split has more than %d tensors",
				MaxTensors)}
		}
		for _, t := range f.Tensors {
			if _, dup := all.tensorIndex[t.Name]; dup {
				return nil, &FormatError{File: f.Path, Tensor: t.Name, Offset: -1, Msg: "the tensor is in two files of the split"}
			}
			t.Shard = i
			all.tensorIndex[t.Name] = len(all.Tensors)
			all.Tensors = append(all.Tensors, t)
		}
	}
	if declared >= 0 && declared != int64(len(all.Tensors)) {
		return nil, &FormatError{File: ShardPath(base, 0, n), Key: keySplitTensors, Offset: -1,
			Msg: fmt.Sprintf("the value is %d, but the files hold %d tensors", declared, len(all.Tensors))}
	}
	return all, nil
}

// splitBase takes the shard number off a path.
func splitBase(path string, n int) (string, error) {
	dir, name := filepath.Split(path)
	m := shardName.FindStringSubmatch(name)
	if m == nil || m[3] != fmt.Sprintf("%05d", n) {
		return "", &FormatError{File: path, Key: keySplitCount, Offset: -1,
			Msg: fmt.Sprintf("the file is one of a split of %d, but its name does not end in -NNNNN-of-%05d.gguf, so the others cannot be found; restore the original names", n, n)}
	}
	if i, _ := strconv.Atoi(m[2]); i < 1 || i > n {
		return "", &FormatError{File: path, Key: keySplitNo, Offset: -1, Msg: fmt.Sprintf("the name says file %d of %d", i,
			n)}
	}
	return dir + m[1], nil
}

// checkShard compares what a shard says about itself with its place i of n.
func (f *File) checkShard(i, n int) error {
	for _, c := range []struct {
		key  string
		want int
	}{{keySplitNo, i}, {keySplitCount, n}} {
		got, err := f.Uint(c.key)
		if err != nil {
			return err
		}
		if got != uint64(c.want) {
			return &FormatError{File: f.Path, Key: c.key, Offset: -1,
				Msg: fmt.Sprintf("the value is %d, expected %d; the file may belong to another split", got, c.want)}
		}
	}
	return nil
}

// Paths returns the files that f was read from, in the order of their shards.
func (f *File) Paths() []string {
	if f.Shards <= 1 {
		return []string{f.Path}
	}
	base, err := splitBase(f.Path, f.Shards)
	if err != nil { // not possible for a split that Open followed
		return []string{f.Path}
	}
	var out []string
	for i := range f.Shards {
		out = append(out, ShardPath(base, i, f.Shards))
	}
	return out
}
