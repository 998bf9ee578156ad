package tokenizer

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
	"testing"
)

// metadata is a Source over a map, as a test double for a GGUF reader.
type metadata map[string]any

func (m metadata) String(key string) (string, bool)      { v, ok := m[key].(string); return v, ok }
func (m metadata) Bool(key string) (bool, bool)          { v, ok := m[key].(bool); return v, ok }
func (m metadata) Strings(key string) ([]string, bool)   { v, ok := m[key].([]string); return v, ok }
func (m metadata) Float32s(key string) ([]float32, bool) { v, ok := m[key].([]float32); return v, ok }
func (m metadata) Int32s(key string) ([]int32, bool)     { v, ok := m[key].([]int32); return v, ok }
func (m metadata) Uint(key string) (uint64, bool) {
	switch v := m[key].(type) {
	case uint32:
		return uint64(v), true
	case uint64:
		return v, true
	}
	return 0, false
}

// readGGUF reads the metadata of a GGUF file: just enough of the format for
// these tests, and independent of the package that reads it for real.
func readGGUF(t testing.TB, path string) metadata {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<20)
	read := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return b
	}
	u32 := func() uint32 { return binary.LittleEndian.Uint32(read(4)) }
	u64 := func() uint64 { return binary.LittleEndian.Uint64(read(8)) }
	str := func() string { return string(read(int(u64()))) }
	var value func(kind uint32) any
	value = func(kind uint32) any {
		switch kind {
		case 0, 1:
			return uint64(read(1)[0])
		case 2, 3:
			return uint64(binary.LittleEndian.Uint16(read(2)))
		case 4:
			return u32()
		case 5:
			return uint64(int32(u32()))
		case 6:
			return math.Float32frombits(u32())
		case 7:
			return read(1)[0] != 0
		case 8:
			return str()
		case 9:
			kind, n := u32(), int(u64())
			switch kind {
			case 8:
				s := make([]string, n)
				for i := range s {
					s[i] = str()
				}
				return s
			case 5:
				s := make([]int32, n)
				for i := range s {
					s[i] = int32(u32())
				}
				return s
			case 6:
				s := make([]float32, n)
				for i := range s {
					s[i] = math.Float32frombits(u32())
				}
				return s
			}
			for range n {
				value(kind)
			}
			return nil
		case 10, 11:
			return u64()
		case 12:
			return math.Float64frombits(u64())
		}
		t.Fatalf("%s: value type %d", path, kind)
		return nil
	}
	if string(read(4)) != "GGUF" || u32() > 3 {
		t.Fatal(fmt.Errorf("%s: no GGUF version 2 or 3", path))
	}
	u64() // tensors
	m := make(metadata)
	for n := u64(); n > 0; n-- {
		key := str()
		m[key] = value(u32())
	}
	return m
}
