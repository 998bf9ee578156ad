package stream_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/phaseconv/phaseconv/format/stream"
)

const mib = 1 << 20

func TestCopy(t *testing.T) {
	for _, n := range []int{0, 1, mib - 1, mib, mib + 1, 3*mib + 7} {
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(i * i >> 3)
		}
		var steps [][2]int
		m := stream.NewMeter(int64(n), func(done, total int) { steps = append(steps, [2]int{done, total}) })
		var out bytes.Buffer
		// A reader may give less than was asked for.
		if err := stream.Copy(t.Context(), &out, iotest.HalfReader(bytes.NewReader(data)), m); err != nil {
			t.Fatal(err)
		}
		m.Finish()
		if !bytes.Equal(out.Bytes(), data) {
			t.Errorf("%d bytes became %d others", n, out.Len())
		}
		total := max(1, (n+mib-1)/mib)
		var want [][2]int
		for i := range total + 1 {
			want = append(want, [2]int{i, total})
		}
		if !slices.Equal(steps, want) {
			t.Errorf("%d bytes: steps %v, want %v", n, steps, want)
		}
	}
}

func TestCopyFails(t *testing.T) {
	broken := errors.New("broken")
	if err := stream.Copy(t.Context(), io.Discard, iotest.ErrReader(broken), nil); !errors.Is(err, broken) {
		t.Errorf("reading: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	var out bytes.Buffer
	m := stream.NewMeter(4*mib, func(done, _ int) {
		if done == 2 {
			cancel(broken)
		}
	})
	if err := stream.Copy(ctx, &out, bytes.NewReader(make([]byte, 4*mib)), m); !errors.Is(err, broken) ||
		out.Len() != 2*mib {
		t.Errorf("stopped: %v after %d bytes", err, out.Len())
	}
	w := failing{broken}
	if err := stream.Copy(t.Context(), w, bytes.NewReader(make([]byte, 9)), nil); !errors.Is(err, broken) {
		t.Errorf("writing: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
