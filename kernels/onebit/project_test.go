package onebit

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/phaseconv/phaseconv/kernels/internal/bench"
	"github.com/phaseconv/phaseconv/kernels/internal/guard"
	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

// defineProjection follows the comment of Projection, with nothing shared with the code
// under test but the lengths.
func defineProjection(rows, q []float32, b, d int, length float64) []float32 {
	n := 0.0
	for i := range b {
		n = max(n, Length(rows[i*d:(i+1)*d]))
	}
	round := func(v, scale float32) int64 { return int64(math.RoundToEven(float64(float32(v * scale)))) }
	rs, qs := float32(32000/n), float32(32000/length)
	out := make([]float32, b)
	for i := range out {
		var sum int64
		for j, v := range q {
			sum += round(rows[i*d+j], rs) * round(v, qs)
		}
		if sum != int64(int32(sum)) {
			panic("a sum beyond 32 bits")
		}
		out[i] = float32(float32(sum) * float32(length*n/(32000*32000)))
	}
	return out
}

func TestProjection(t *testing.T) {
	impl.TestAll(t, "onebit", func(t *testing.T) {
		r := rand.New(rand.NewPCG(21, 1))
		var x Queries
		for trial, b := range []int{8, 16, 48, 64, 104, 192, 576, 1024} {
			for k, d := range []int{1, 7, 8, 40, 64, 80, 128, 256} {
				if b > 104 && d != 64 && d != 80 {
					continue
				}
				n := []int{1, 3, 4, 7, 8, 9, 24, 25}[(trial+3*k)%8]
				rows := make([]float32, b*d)
				for i := range rows {
					rows[i] = float32(r.NormFloat64()) * float32(1+i/d%3)
				}
				side := guard.Sides[(trial+k)%2]
				ldq := d + r.IntN(3)
				q, lengths := guard.Slice[float32](t, (n-1)*ldq+d, side), make([]float64, n)
				for i := range q {
					q[i] = float32(r.NormFloat64())
				}
				for i := range lengths {
					lengths[i] = Length(q[i*ldq:][:d])
				}
				p := NewProjection(rows, b, d)
				p.rows = guard.Copy(t, p.rows, side)
				x.Set(p, q, ldq, n, lengths)
				x.ints, x.factors = guard.Copy(t, x.ints, side), guard.Copy(t, x.factors, side)
				ldo := p.Width() + r.IntN(3)
				out := guard.Slice[float32](t, (n-1)*ldo+p.Width(), side)
				for i := range out {
					out[i] = 12345
				}
				p.Apply(out, ldo, &x)
				for row := range n {
					for i, want := range defineProjection(rows, q[row*ldq:][:d], b, d, lengths[row]) {
						if got := out[row*ldo+i]; math.Float32bits(got) != math.Float32bits(want) {
							t.Fatalf("b %d, d %d, row %d of %d, sign %d: got %v, want %v", b, d, row, n, i, got, want)
						}
					}
					for i := row*ldo + p.Width(); i < min(len(out), (row+1)*ldo); i++ {
						if out[i] != 12345 {
							t.Fatalf("b %d, d %d: wrote beyond row %d", b, d, row)
						}
					}
				}
			}
		}
	})
}

// TestProjectionError: the error is what the comment of Projection says, and sums of
// queries and rows along each other stay in 32 bits.
func TestProjectionError(t *testing.T) {
	r := rand.New(rand.NewPCG(22, 1))
	const b, d, n = 192, 64, 20
	rows, q := make([]float32, b*d), make([]float32, n*d)
	for i := range rows {
		rows[i] = float32(r.NormFloat64())
	}
	for i := range q {
		q[i] = float32(r.NormFloat64())
	}
	copy(q, rows[:d]) // the largest sum
	lengths := make([]float64, n)
	for i := range lengths {
		lengths[i] = Length(q[i*d : (i+1)*d])
	}
	p := NewProjection(rows, b, d)
	var x Queries
	x.Set(p, q, d, n, lengths)
	out := make([]float32, n*b)
	p.Apply(out, b, &x)
	var errs, expect float64
	for i := range n {
		for j := range b {
			var want float64
			for k := range d {
				want += float64(q[i*d+k]) * float64(rows[j*d+k])
			}
			e := float64(out[i*b+j]) - want
			errs += e * e
			step := lengths[i] * p.length / 32000
			expect += step * step / 6
		}
	}
	// Rows are a little shorter than the longest, so the error is a little less.
	if ratio := math.Sqrt(errs / expect); ratio < 0.7 || ratio > 1.05 {
		t.Errorf("the error is %v of the expected one", ratio)
	}
}

func TestOffset(t *testing.T) {
	r := rand.New(rand.NewPCG(23, 1))
	for _, d := range []int{0, 1, 7, 8, 9, 64, 100} {
		mean, q, want := make([]float32, d), make([]float32, d+1), 0.0
		for i := range mean {
			mean[i], q[i] = float32(r.IntN(2000)-1000), float32(r.IntN(2000)-1000)
			want += float64(mean[i]) * float64(q[i])
		}
		// All sums are integers below 2^24 at the few dimensions, and rounded at most a few times.
		if got := float64(Offset(mean, q)); math.Abs(got-want) > 0x1p-20*1e6*float64(d) || d < 9 && got != want {
			t.Errorf("%d numbers: %v, want %v", d, got, want)
		}
	}
}

func TestProjectionOdd(t *testing.T) {
	rows := make([]float32, 16*8)
	p := NewProjection(rows, 16, 8)
	q := []float32{1, 2, 3, 4, 5, 6, 7, 8}
	var x Queries
	out := make([]float32, 16)
	x.Set(p, q, 8, 1, []float64{Length(q)})
	p.Apply(out, 16, &x)
	for _, v := range out {
		if v != 0 {
			t.Fatalf("a matrix of zeros gives %v", v)
		}
	}
	rows[0] = 1
	p = NewProjection(rows, 16, 8)
	for _, c := range []struct{ first, want float32 }{{float32(math.Inf(1)), float32(math.NaN())}, {0, 0}} {
		clear(q)
		q[0] = c.first
		x.Set(p, q, 8, 1, []float64{Length(q)})
		p.Apply(out, 16, &x)
		if v := out[0]; v != c.want && (v == v || c.want == c.want) {
			t.Errorf("a query of %v gives %v", c.first, v)
		}
	}
	for name, f := range map[string]func(){
		"matrix":      func() { NewProjection(rows[1:], 16, 8) },
		"signs":       func() { NewProjection(rows[:12*8], 12, 8) },
		"few queries": func() { x.Set(p, q, 8, 2, []float64{1, 1}) },
		"lengths":     func() { x.Set(p, q, 8, 1, nil) },
		"out":         func() { p.Apply(out[1:], 16, &x) },
		"other":       func() { NewProjection(make([]float32, 16*16), 16, 16).Apply(out, 16, &x) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func BenchmarkProjection(b *testing.B) {
	impl.TestAll(b, "onebit", func(b *testing.B) {
		for _, n := range []int{8, 24} {
			const signs, d = 576, 64
			b.Run(fmt.Sprintf("signs=%d/queries=%d", signs, n), func(b *testing.B) {
				rows, q, lengths := make([]float32, signs*d), make([]float32, n*d), make([]float64, n)
				for i := range rows {
					rows[i] = float32(i%17) - 8
				}
				for i := range q {
					q[i] = float32(i%13) - 6
				}
				for i := range lengths {
					lengths[i] = Length(q[i*d : (i+1)*d])
				}
				p := NewProjection(rows, signs, d)
				var x Queries
				out := make([]float32, n*signs)
				best := bench.Best(b, func() {
					x.Set(p, q, d, n, lengths)
					p.Apply(out, signs, &x)
				})
				b.ReportMetric(float64(best.Nanoseconds())/float64(n), "best-ns/query")
			})
		}
	})
}
