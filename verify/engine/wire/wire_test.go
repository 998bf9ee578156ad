package wire

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	c := New(&b, &b)
	ids, x, y := []int32{-1, 7, 1 << 30}, []float32{1.5, -0}, []float64{3, -1e300}
	if err := c.Send("job", map[string]int{"n": 3}, Int32s(ids), nil, Float32s(x), Float64s(y)); err != nil {
		t.Fatal(err)
	}
	if err := c.Send("end", nil); err != nil {
		t.Fatal(err)
	}
	f, err := c.Receive()
	if err != nil {
		t.Fatal(err)
	}
	var body struct{ N int }
	if err := f.Decode(&body); err != nil || body.N != 3 || f.Kind != "job" || len(f.Blobs) != 4 || len(f.Blobs[1]) != 0 {
		t.Fatalf("%+v %+v %v", f, body, err)
	}
	gotIDs, err1 := ReadInt32s(f.Blobs[0])
	gotX, err2 := ReadFloat32s(f.Blobs[2])
	gotY, err3 := ReadFloat64s(f.Blobs[3])
	if err := errors.Join(err1, err2, err3); err != nil || !slices.Equal(gotIDs, ids) ||
		!slices.Equal(gotX, x) || !slices.Equal(gotY, y) {
		t.Fatal(gotIDs, gotX, gotY, err)
	}
	if f, err = c.Receive(); err != nil || f.Kind != "end" || f.Decode(&body) == nil {
		t.Fatal(f, err)
	}
	if _, err = c.Receive(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

// TestBroken: frames that no worker sends are refused, and take no memory.
func TestBroken(t *testing.T) {
	frame := func(header string, rest string) string {
		n := len(header)
		return "PCW1" + string([]byte{byte(n), byte(n >> 8), 0, 0}) + header + rest
	}
	for name, x := range map[string]struct{ bytes, want string }{
		"noise":      {"error: out of memory\n", "begins with"},
		"short head": {"PCW1\x01", "unexpected EOF"},
		"long head":  {"PCW1\xff\xff\xff\xff", "header has"},
		"not JSON":   {frame("{", ""), "header"},
		"short blob": {frame(`{"kind":"x","lens":[8589934592]}`, "abc"), "unexpected EOF"},
		"huge blob":  {frame(`{"kind":"x","lens":[8589934593]}`, ""), "blob 0"},
		"negative":   {frame(`{"kind":"x","lens":[-1]}`, ""), "blob 0"},
	} {
		_, err := New(strings.NewReader(x.bytes), io.Discard).Receive()
		if err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
	}
}
