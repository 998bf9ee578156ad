package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// file builds a safetensors file by hand.
func file(header string, data []byte) []byte {
	raw := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(raw, header...), data...)
}

func openBytes(t testing.TB, raw []byte) (*File, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.safetensors")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if f != nil {
		t.Cleanup(func() { f.Close() })
	}
	return f, err
}

// refused checks that raw is refused with a FormatError that says all of says.
func refused(t *testing.T, raw []byte, says ...string) {
	t.Helper()
	_, err := openBytes(t, raw)
	var fe *FormatError
	if !errors.As(err, &fe) {
		t.Errorf("error %v, want a FormatError about %q", err, says)
		return
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q does not say %q", err, s)
		}
	}
}

const one = `{"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}`

// TestTruncated cuts a valid file at every byte.
func TestTruncated(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("testdata/kinds.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "x.safetensors")
	for n := range raw {
		if err := os.WriteFile(path, raw[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Open(path)
		var fe *FormatError
		if !errors.As(err, &fe) {
			t.Fatalf("cut to %d of %d bytes: error %v", n, len(raw), err)
		}
		if f != nil {
			t.Fatal("a file with the error")
		}
	}
	if _, err := openBytes(t, append(slices.Clone(raw), 0)); err == nil {
		t.Error("a byte too many is accepted")
	}
}

// TestLimits holds every limit from both sides.
func TestLimits(t *testing.T) {
	name := func(n int) []byte {
		return file(`{"`+strings.Repeat("n", n)+`":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}`, []byte{1})
	}
	if _, err := openBytes(t, name(MaxName)); err != nil {
		t.Error(err)
	}
	refused(t, name(MaxName+1), "1025 bytes", "limit")

	dims := func(n int) []byte {
		return file(`{"w":{"dtype":"U8","shape":[`+strings.TrimSuffix(strings.Repeat("1,", n),
			",")+`],"data_offsets":[0,1]}}`, []byte{1})
	}
	if _, err := openBytes(t, dims(MaxDims)); err != nil {
		t.Error(err)
	}
	refused(t, dims(MaxDims+1), "tensor w", "more than 16")

	refused(t, file(`{"w":{"dtype":"X","shape":[2147483648,0],"data_offsets":[0,0]}}`, nil), "tensor w", "not possible")

	// A header longer than the limit, in a sparse file that is large enough.
	path := filepath.Join(t.TempDir(), "x.safetensors")
	h, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.Write(binary.LittleEndian.AppendUint64(nil, MaxHeader+1)); err != nil {
		t.Fatal(err)
	}
	if err := h.Truncate(MaxHeader + 100); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "exceeds the limit") {
		t.Errorf("header over the limit: %v", err)
	}

	// A million tensors take seconds to parse, so start with nearly as many.
	for n, ok := range map[int]bool{MaxTensors - 2: true, MaxTensors - 1: false} {
		f := &File{Path: "x", size: 1 << 20, Tensors: make([]Tensor, n)}
		err := f.parseHeader([]byte(`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`))
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "more than 1048576 tensors") {
			t.Errorf("2 tensors more than %d: %v", n, err)
		}
	}
}

// TestErrorsName checks that a message tells which tensor is at fault and where.
func TestErrorsName(t *testing.T) {
	refused(t, file(`{"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,9]}}`, make([]byte, 9)), "tensor w", "8 bytes",
		"span 9", "offset ")
	refused(t, file(`{"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}`, make([]byte, 7)), "tensor w", "cut off")
	refused(t, file(`{"w":{"dtype":"F32","shape":[1,2],"data_offsets":[8,16]}}`, make([]byte, 16)), "tensor w",
		"starts at 8")
	refused(t, file(`{"v":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}`, make([]byte, 8)), "tensor w", "starts at 0")
	refused(t, file(`{"w":{"dtype":"F64","shape":[536870912,536870912],"data_offsets":[0,0]}}`, nil), "tensor w",
		"not possible")
	refused(t, file(`{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}`, make([]byte, 4)), "tensor w",
		"shape holds -1")
	refused(t, file(`{"w":{"dtype":"F32","shape":[1,2]}}`, make([]byte, 8)), "tensor w", "data_offsets is missing")
	refused(t, file(`{"w":{"dtype":"F32","shape":[1,2],"shape":[2,1],"data_offsets":[0,8]}}`, make([]byte, 8)), "tensor w",
		`"shape" appears twice`)
	refused(t, file(`{"__metadata__":{"a":1},"w":{}}`, nil), "__metadata__", "texts")
	refused(t, file(`{"__metadata__":{},"__metadata__":{}}`, nil), "__metadata__ appears twice")
	refused(t, file(one, make([]byte, 12)), "8 bytes of data are described, 12 are there")
	refused(t, []byte("ab"), "cut off")
	// A name must not reach the terminal as control characters.
	_, err := openBytes(t, file(`{"\u001b[2Jw":{"dtype":"F32","shape":[1],"data_offsets":[0,5]}}`, make([]byte, 5)))
	if err == nil || strings.ContainsRune(err.Error(), 0x1b) {
		t.Errorf("error %q", err)
	}
}

func TestReadRowsRefuses(t *testing.T) {
	f, err := openBytes(t, file(`{"w":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]},"q":{"dtype":"I8","shape":[2],"data_offsets":[24,26]}}`, make([]byte, 26)))
	if err != nil {
		t.Fatal(err)
	}
	w, _ := f.Find("w")
	const big = int(^uint(0) >> 1)
	for _, r := range [][3]int{{-1, 1, 8}, {0, -1, 8}, {0, 4, 8}, {3, 1, 8}, {2, 2, 8}, {0, 3, 5}, {1, big, 8},
		{big, 1, 8}, {big, big, 8}} {
		if err := f.ReadRows(w, r[0], r[1], make([]float32, r[2])); err == nil {
			t.Errorf("rows %d+%d into %d: no error", r[0], r[1], r[2])
		}
	}
	q, _ := f.Find("q")
	var ue *UnsupportedError
	if err := f.ReadRows(q, 0, 1, make([]float32, 2)); !errors.As(err, &ue) || ue.Tensor != "q" || ue.DType != "I8" {
		t.Errorf("I8: %v", err)
	}
	if err := os.Truncate(f.Path, 40); err != nil {
		t.Fatal(err)
	}
	if err := f.ReadRows(w, 0, 3, make([]float32, 6)); err == nil || !strings.Contains(err.Error(), "became shorter") {
		t.Errorf("file cut while open: %v", err)
	}
}

// writeSet makes a folder of shards: file name to tensor names, each one byte.
func writeSet(t *testing.T, index string, shards map[string][]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, tensors := range shards {
		var ts []Tensor
		for _, n := range tensors {
			ts = append(ts, Tensor{Name: n, DType: "U8", Shape: []int{1}})
		}
		w, err := Create(filepath.Join(dir, name), ts, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range tensors {
			if err := w.WriteTensor(n, func(o io.Writer) error { _, err := o.Write([]byte(n[:1])); return err }); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	if index != "" {
		if err := os.WriteFile(filepath.Join(dir, IndexName), []byte(index), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestOpenDir(t *testing.T) {
	dir := writeSet(t, `{"metadata":{"total_size":3},"weight_map":{"a":"1.safetensors","b":"1.safetensors","c":"2.safetensors"}}`,
		map[string][]string{"1.safetensors": {"a", "b"}, "2.safetensors": {"c", "extra"}})
	s, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := s.Names(); !slices.Equal(got, []string{"a", "b", "c", "extra"}) {
		t.Errorf("names %v", got)
	}
	for _, n := range s.Names() {
		r, ok := s.Find(n)
		if !ok {
			t.Fatal(n)
		}
		b, err := io.ReadAll(r.File.Reader(r.Tensor))
		if err != nil || string(b) != n[:1] {
			t.Errorf("%s holds %q, %v", n, b, err)
		}
	}
	if len(s.Files) != 2 || filepath.Base(s.Files[0].Path) != "1.safetensors" || len(s.Index) == 0 {
		t.Errorf("%d files, index of %d bytes", len(s.Files), len(s.Index))
	}
	if _, ok := s.Find("none"); ok {
		t.Error("found a tensor that is not there")
	}

	single, err := OpenDir(writeSet(t, "", map[string][]string{SingleName: {"a"}}))
	if err != nil {
		t.Fatal(err)
	}
	defer single.Close()
	if single.Index != nil || len(single.Files) != 1 {
		t.Errorf("%+v", single)
	}
}

func TestOpenDirRefuses(t *testing.T) {
	shards := map[string][]string{"1.safetensors": {"a"}, "2.safetensors": {"b"}}
	for _, c := range []struct {
		index  string
		shards map[string][]string
		says   string
	}{
		{"", nil, "neither model.safetensors nor"},
		{`{"weight_map":{"a":"../1.safetensors"}}`, shards, "plain file name"},
		{`{"weight_map":{"a":"/etc/passwd"}}`, shards, "plain file name"},
		{`{"weight_map":{"a":"x/1.safetensors"}}`, shards, "plain file name"},
		{`{"weight_map":{"a":"..\\1.safetensors"}}`, shards, "plain file name"},
		{`{"weight_map":{"a":"C:1.safetensors"}}`, shards, "plain file name"},
		{`{"weight_map":{"a":".."}}`, shards, "plain file name"},
		{`{"weight_map":{"a":"."}}`, shards, "plain file name"},
		{`{"weight_map":{"a":""}}`, shards, "plain file name"},
		{`{"weight_map":{"a":null}}`, shards, "plain file name"},
		{`{"weight_map":{"a":"1.safetensors\u0000"}}`, shards, "plain file name"},
		{`{"weight_map":{}}`, shards, "names no shard"},
		{`{}`, shards, "weight_map"},
		{`{"WEIGHT_MAP":{"a":"1.safetensors"}}`, shards, "weight_map"},
		{`{"weight_map":{"a":1}}`, shards, "weight_map"},
		{`{"weight_map":[]}`, shards, "weight_map"},
		{`[]`, shards, "not a valid index"},
		{`{"weight_map":{"a":"1.safetensors"`, shards, "not a valid index"},
		{`{"weight_map":{"a":"1.safetensors","b":"3.safetensors"}}`, shards,
			"shard 3.safetensors is missing; download all 2"},
		{`{"weight_map":{"a":"2.safetensors","b":"1.safetensors"}}`, shards, "tensor a is not in shard 2.safetensors"},
		{`{"weight_map":{"a":"1.safetensors","c":"2.safetensors"}}`, shards, "tensor c is not in shard 2.safetensors"},
		{`{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}`, map[string][]string{"1.safetensors": {"a", "b"},
			"2.safetensors": {"b"}}, "tensor b is also in 1.safetensors"},
	} {
		dir := writeSet(t, c.index, c.shards)
		before := openFiles(t)
		s, err := OpenDir(dir)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: error %v, want %q", c.index, err, c.says)
		}
		if after := openFiles(t); after != before {
			t.Errorf("%s: %d files open, %d before", c.index, after, before)
		}
	}
	var b strings.Builder
	for i := range MaxShards + 1 {
		fmt.Fprintf(&b, `,"%d":"%d"`, i, i)
	}
	if _, err := OpenDir(writeSet(t, `{"weight_map":{`+b.String()[1:]+`}}`, nil)); err == nil ||
		!strings.Contains(err.Error(), "limit of 4096") {
		t.Errorf("too many shards: %v", err)
	}
	// A large index, sparse.
	dir := t.TempDir()
	h, err := os.Create(filepath.Join(dir, IndexName))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Truncate(MaxIndex + 1); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(dir); err == nil || !strings.Contains(err.Error(), "larger than 104857600 bytes") {
		t.Errorf("large index: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

// openFiles counts this process's open files, 0 where that cannot be known.
func openFiles(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(e)
}

// TestWriterLayout: order kept, header padded so that the data is aligned, the
// offsets without gaps, the same bytes each time.
func TestWriterLayout(t *testing.T) {
	ts := []Tensor{
		{Name: "z", DType: "F32", Shape: []int{2, 2}},
		{Name: "a", DType: "U8", Shape: []int{3}},
		{Name: "e", DType: "F16", Shape: []int{0, 4}},
		{Name: "s", DType: "BF16"},
		{Name: "f4", DType: "F4", Shape: []int{3, 2}},
		{Name: "opaque", DType: "Q77", Shape: []int{1000}, Begin: 40, End: 45},
		{Name: strings.Repeat("p", 7), DType: "U8", Shape: []int{1}},
	}
	var first []byte
	for range 2 {
		path := filepath.Join(t.TempDir(), "x.safetensors")
		w, err := Create(path, ts, map[string]string{"b": "2", "a": "1"})
		if err != nil {
			t.Fatal(err)
		}
		for i, n := range []int{16, 3, 0, 2, 3, 5, 1} {
			if err := w.WriteTensor(ts[i].Name,
				func(o io.Writer) error { _, err := o.Write(bytes.Repeat([]byte{byte(i + 1)}, n)); return err }); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the file is there before Commit: %v", err)
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		w.Abort()
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = raw
		} else if !bytes.Equal(raw, first) {
			t.Error("two runs give different bytes")
		}
		n := binary.LittleEndian.Uint64(raw)
		if n%8 != 0 || raw[8] != '{' {
			t.Errorf("header of %d bytes, first %q", n, raw[8])
		}
		var keys []string
		dec := json.NewDecoder(bytes.NewReader(raw[8 : 8+n]))
		dec.Token()
		for dec.More() {
			k, err := dec.Token()
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, k.(string))
			var skip any
			if err := dec.Decode(&skip); err != nil {
				t.Fatal(err)
			}
		}
		if want := []string{"__metadata__", "z", "a", "e", "s", "f4", "opaque", "ppppppp"}; !slices.Equal(keys, want) {
			t.Errorf("keys %v, want %v", keys, want)
		}
		f := open(t, path)
		for i, want := range ts {
			got := f.Tensors[i]
			if got.Name != want.Name || got.DType != want.DType || !slices.Equal(got.Shape, want.Shape) {
				t.Errorf("tensor %d is %+v, want %+v", i, got, want)
			}
			b, _ := io.ReadAll(f.Reader(&got))
			if int64(len(b)) != got.Size() || len(bytes.Trim(b, string([]byte{byte(i + 1)}))) > 0 {
				t.Errorf("%s holds %v", got.Name, b)
			}
		}
		if !reflect.DeepEqual(f.Metadata, map[string]string{"a": "1", "b": "2"}) {
			t.Errorf("metadata %v", f.Metadata)
		}
	}
	// No padding is needed for every header length: the loop above saw one only.
	for n := range 16 {
		path := filepath.Join(t.TempDir(), "x")
		w, err := Create(path, []Tensor{{Name: strings.Repeat("x", n+1), DType: "U8", Shape: []int{0}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteTensor(strings.Repeat("x", n+1), func(io.Writer) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		raw, _ := os.ReadFile(path)
		if len(raw)%8 != 0 {
			t.Errorf("name of %d: file of %d bytes", n+1, len(raw))
		}
		open(t, path)
	}
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "x.safetensors")
	u8 := func(name string) Tensor { return Tensor{Name: name, DType: "U8", Shape: []int{1}} }
	for says, ts := range map[string][]Tensor{
		"given twice":               {u8("a"), u8("a")},
		"reserved":                  {u8("__metadata__")},
		"UTF-8":                     {u8("a\xff")},
		"1025 bytes":                {u8(strings.Repeat("n", MaxName+1))},
		"17 dimensions":             {{Name: "a", DType: "U8", Shape: make([]int, MaxDims+1)}},
		"not possible":              {{Name: "a", DType: "U8", Shape: []int{-1}}},
		"whole bytes":               {{Name: "a", DType: "F4", Shape: []int{3}}},
		"negative":                  {{Name: "a", DType: "X", Begin: 5, End: 4}},
		"too large":                 {{Name: "a", DType: "X", End: 1 << 62}, {Name: "b", DType: "X", End: 1 << 62}},
		"[2147483648 0]":            {{Name: "a", DType: "U8", Shape: []int{1 << 31, 0}}},
		"[65536 65536 65536 65536]": {{Name: "a", DType: "I64", Shape: []int{1 << 16, 1 << 16, 1 << 16, 1 << 16}}},
	} {
		if _, err := Create(path, ts, nil); err == nil || !strings.Contains(err.Error(), says) ||
			!strings.Contains(err.Error(), path) {
			t.Errorf("want %q: %v", says, err)
		}
	}
	if _, err := Create(path, nil, map[string]string{"k": "\xff"}); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("metadata: %v", err)
	}
	if _, err := Create(path, make([]Tensor, MaxTensors+1), nil); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("number of tensors: %v", err)
	}
	if _, err := Create(path, nil, map[string]string{"k": strings.Repeat("x", MaxHeader)}); err == nil ||
		!strings.Contains(err.Error(), "limit") {
		t.Errorf("header: %v", err)
	}
	if _, err := Create(filepath.Join(dir, "none", "x"), nil, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("folder that does not exist: %v", err)
	}
	empty(t, dir)
}

// empty checks that nothing is left in a folder, not even under a hidden name.
func empty(t *testing.T, dir string) {
	t.Helper()
	e, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range e {
		t.Errorf("left behind: %s", x.Name())
	}
}

// TestWriterMisuse: whatever goes wrong, Commit fails and nothing is left.
func TestWriterMisuse(t *testing.T) {
	boom := errors.New("boom")
	write := func(n int) func(io.Writer) error {
		return func(o io.Writer) error { _, err := o.Write(make([]byte, n)); return err }
	}
	for name, use := range map[string]func(w *Writer) error{
		"nothing":    func(w *Writer) error { return nil },
		"one of two": func(w *Writer) error { return w.WriteTensor("a", write(4)) },
		"too few":    func(w *Writer) error { return w.WriteTensor("a", write(3)) },
		"too many":   func(w *Writer) error { return w.WriteTensor("a", write(5)) },
		"too many, unnoticed": func(w *Writer) error {
			return w.WriteTensor("a", func(o io.Writer) error { o.Write(make([]byte, 5)); return nil })
		},
		"wrong order": func(w *Writer) error { return w.WriteTensor("b", write(4)) },
		"unknown":     func(w *Writer) error { return w.WriteTensor("c", write(4)) },
		"body fails":  func(w *Writer) error { return w.WriteTensor("a", func(io.Writer) error { return boom }) },
		// The bytes of a failed attempt are in the file: a second one cannot mend it.
		"second attempt": func(w *Writer) error {
			w.WriteTensor("a", write(3))
			if err := w.WriteTensor("a", write(4)); err != nil {
				return err
			}
			return w.WriteTensor("b", write(4))
		},
		"third tensor": func(w *Writer) error {
			w.WriteTensor("a", write(4))
			w.WriteTensor("b", write(4))
			return w.WriteTensor("c", write(0))
		},
		"aborted": func(w *Writer) error {
			w.WriteTensor("a", write(4))
			w.WriteTensor("b", write(4))
			w.Abort()
			return nil
		},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "x.safetensors")
		w, err := Create(path, []Tensor{{Name: "a", DType: "F32", Shape: []int{1}},
			{Name: "b", DType: "F32", Shape: []int{1}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		useErr := use(w)
		err = w.Commit()
		if err == nil {
			t.Errorf("%s: Commit succeeds (use: %v)", name, useErr)
		}
		if useErr != nil && !strings.Contains(useErr.Error(), path) {
			t.Errorf("%s: error without the file: %v", name, useErr)
		}
		if name == "body fails" && !errors.Is(err, boom) {
			t.Errorf("%s: %v", name, err)
		}
		empty(t, dir)
	}
	// Commit twice.
	dir := t.TempDir()
	w, err := Create(filepath.Join(dir, "x"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err == nil {
		t.Error("a second Commit succeeds")
	}
	if _, err := os.Stat(filepath.Join(dir, "x")); err != nil {
		t.Errorf("the second Commit or its Abort took the file away: %v", err)
	}
}

// TestEncode: what Decode reads is what Encode wrote, rounded to the type.
func TestEncode(t *testing.T) {
	x := []float32{0, 1, -2.5, 65504, 1e-8, 3.0e38, 1.00390625, 1.01171875}
	want := map[string][]float32{
		"F32": x, "F64": x,
		// 1.00390625 and 1.01171875 lie half way between two BF16 numbers: ties to even.
		"BF16": {0, 1, -2.5, 65536, 1.0011718e-08, 3.0040553e+38, 1, 1.015625},
	}
	for _, dt := range []string{"F32", "BF16", "F64"} {
		b := make([]byte, len(x)*ElementBytes(dt))
		Encode(dt, b, x)
		got := make([]float32, len(x))
		Decode(dt, got, b)
		if !slices.Equal(got, want[dt]) {
			t.Errorf("%s: %v, want %v", dt, got, want[dt])
		}
	}
	if ElementBytes("F16") != 2 || ElementBytes("F64") != 8 || ElementBytes("I8") != 0 || ElementBytes("F8_E4M3") != 0 {
		t.Error("ElementBytes")
	}
}

// TestF64: doubles are rounded to nearest, ties to even; one that float32 has no room
// for is an error with its value and place.
func TestF64(t *testing.T) {
	half := math.Ldexp(1, -24) // half of the last bit of 1
	x := []float64{1 + half, 1 + 3*half, 1 + half*1.001, -math.Pi, 1e-300, math.MaxFloat32}
	want := []float32{1, 1 + float32(4*half), 1 + float32(2*half), -math.Pi, 0, math.MaxFloat32}
	var data []byte
	for _, v := range append(x, 1e300, math.Inf(1)) {
		data = binary.LittleEndian.AppendUint64(data, math.Float64bits(v))
	}
	f, err := openBytes(t, file(`{"__metadata__":null,"w":{"dtype":"F64","shape":[8,1],"data_offsets":[0,64]}}`, data))
	if err != nil {
		t.Fatal(err)
	}
	if f.Metadata != nil {
		t.Errorf("metadata null: %v", f.Metadata)
	}
	w, _ := f.Find("w")
	got := make([]float32, 6)
	if err := f.ReadRows(w, 0, 6, got); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if err := f.ReadRows(w, 5, 2, got); err == nil || !strings.Contains(err.Error(), "tensor w") ||
		!strings.Contains(err.Error(), "1e+300") {
		t.Errorf("too large: %v", err)
	}
	if err := f.ReadRows(w, 7, 1, got); err != nil || !math.IsInf(float64(got[0]), 1) {
		t.Errorf("infinity: %v, %v", got[0], err)
	}
}
