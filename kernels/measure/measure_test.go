package measure

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/phaseconv/phaseconv/kernels/internal/asmcheck"
	"github.com/phaseconv/phaseconv/kernels/internal/guard"
	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

func TestRequires(t *testing.T) {
	asm, err := os.ReadFile("measure_amd64.s")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range asmcheck.Requires(string(asm), asmcheck.AMD64) {
		t.Error(err)
	}
}

// TestRead: every word is read, and nothing beyond the buffer.
func TestRead(t *testing.T) {
	impl.TestAll(t, "measure", func(t *testing.T) {
		for i, n := range []int{0, chunk, 3 * chunk, 16 * chunk} {
			b := guard.Slice[byte](t, n, guard.Sides[i%2])
			for at := 0; at < n; at += 8 {
				clear(b)
				binary.LittleEndian.PutUint64(b[at:], 1<<40+uint64(at))
				// The assembly returns the first quarter of its vector.
				if got := read(b); at%32 == 0 && got != 1<<40+uint64(at) {
					t.Fatalf("%d bytes: the word at %d reads %#x", n, at, got)
				}
			}
		}
	})
}

func TestRun(t *testing.T) {
	// The smallest sizes; that numbers are there and add up, not how large they are.
	old := bufferSizes
	bufferSizes = []int{16 << 10, 1 << 20}
	defer func() { bufferSizes = old }()
	entries := timeScores(t.Context(), segment+100, 64, time.Millisecond)
	if len(entries) != 3+len(heads) || entries[0].Format != "F16" || entries[0].Ratio != 1 {
		t.Fatalf("scores: %+v", entries)
	}
	for _, s := range entries {
		if !(s.Ns > 0 && s.Ratio > 0 && s.GBs > 0 && s.Intensity() > 0) {
			t.Errorf("%+v", s)
		}
	}
	if last := entries[len(entries)-1]; last.Bytes != 10 || last.Heads != 8 || last.Intensity() != 2*64*8/10. {
		t.Errorf("%+v", last)
	}
	p := timeProduct(t.Context(), Shape{"model", "a<b", 8, 48, 64}, Options{Threads: 1, Time: time.Millisecond})
	if !(p.GFLOPS > 0 && p.Share > 0 && p.WeightGBs > 0) {
		t.Errorf("%+v", p)
	}
	if got, want := p.Intensity(), 2.*8*48*64/4/(8*48+48*64+8*64); got != want {
		t.Errorf("intensity %v, want %v", got, want)
	}
	r := &Result{Threads: 2, Peak: 200, Peak1: 100, Products: []Product{p}, Scores: entries}
	for _, threads := range []int{1, 2} {
		rate := readRate(t.Context(), 1<<20, threads, time.Millisecond) / 1e9
		if !(rate > 0) {
			t.Errorf("%d threads read %v GB/s", threads, rate)
		}
		r.Bandwidth = append(r.Bandwidth, Bandwidth{1 << 20, threads, rate})
	}
	if got := r.Memory(2); got != r.Bandwidth[1].GBs {
		t.Errorf("two threads read %v GB/s, Memory says %v", r.Bandwidth[1].GBs, got)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if b := bandwidths(ctx, 2, time.Millisecond); len(b) > 0 {
		t.Errorf("%d buffers were filled and read after the end", len(b))
	}
	if r, err := Run(ctx, Options{}); !errors.Is(err, context.Canceled) || r != nil {
		t.Errorf("%v, %v", r, err)
	}
}

// The entries of "phaseconv bench", each on its own.

func BenchmarkGEMM(b *testing.B) {
	for _, s := range Shapes() {
		b.Run(fmt.Sprintf("model=%s/shape=%dx%dx%d", s.Model, s.M, s.N, s.K), func(b *testing.B) {
			run := product(s, 0)
			for b.Loop() {
				run()
			}
			flop := 2 * float64(s.M) * float64(s.N) * float64(s.K)
			b.ReportMetric(flop*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
}

func BenchmarkScores(b *testing.B) {
	for _, n := range DefaultKeys {
		for _, dim := range []int{64, 128, 256} {
			if n > 1e6 && dim != 128 {
				continue // gigabytes
			}
			for _, e := range scoreEntries(n, dim) {
				b.Run(fmt.Sprintf("keys=%d/dim=%d/format=%s/heads=%d", n, dim, e.Format, e.Heads), func(b *testing.B) {
					b.SetBytes(int64(e.Bytes * float64(n)))
					for b.Loop() {
						e.run(0, n)
					}
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n*e.Heads), "ns/key/head")
				})
			}
		}
	}
}

func BenchmarkRead(b *testing.B) {
	for _, size := range bufferSizes {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			buf := make([]byte, size)
			for i := range buf {
				buf[i] = byte(i >> 7)
			}
			b.SetBytes(int64(size))
			for b.Loop() {
				read(buf) // b.Loop keeps the result
			}
		})
	}
}
