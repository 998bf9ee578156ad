package linalg

// panel is how many sums of products run side by side. Each sum still takes its products in
// order, one rounding for the product and one for the sum, so wide registers change no bit.
const panel = 32

// subProducts takes coef[i] times row i of x, [len(coef), panel], from y, [panel], row by row.
func subProducts(y, coef, x []float64) {
	if len(coef) == 0 {
		return
	}
	if y, x := y[:panel], x[:len(coef)*panel]; vectorised() {
		subProductsBlock(y, coef, x)
		return
	}
	for j := 0; j < panel; j += 4 { // four sums in registers
		s0, s1, s2, s3 := y[j], y[j+1], y[j+2], y[j+3]
		for i, c := range coef {
			v := x[i*panel+j:][:4]
			s0 -= float64(c * v[0])
			s1 -= float64(c * v[1])
			s2 -= float64(c * v[2])
			s3 -= float64(c * v[3])
		}
		y[j], y[j+1], y[j+2], y[j+3] = s0, s1, s2, s3
	}
}

// panels returns how many panels n columns take.
func panels(n int) int { return (n + panel - 1) / panel }

// products calls store with piece after piece of A B, summed in index order: sums [i, at:] for
// A [m, d] and B [d, n], whose numbers [k, j] b gives. With lower, only panels that hold a sum
// with j <= i are formed.
func products(a []float64, m, d, n int, lower bool, b func(k, j int) float64, store func(i, at int, sums []float64)) {
	minus := make([]float64, m*d)
	for i, v := range a[:m*d] {
		minus[i] = -v
	}
	x := make([]float64, d*panel)
	var sums [panel]float64
	for at := 0; at < n; at += panel {
		width := min(panel, n-at)
		clear(x)
		for k := range d {
			for j := range width {
				x[k*panel+j] = b(k, at+j)
			}
		}
		first := 0
		if lower {
			first = at
		}
		for i := first; i < m; i++ {
			clear(sums[:])
			subProducts(sums[:], minus[i*d:(i+1)*d], x)
			store(i, at, sums[:width])
		}
	}
}

// Multiply returns A B for A [m, d] and B [d, d], summed in float64 and in index order.
func Multiply(a []float32, b []float64, m, d int) []float32 {
	out := make([]float32, m*d)
	products(Float64(a), m, d, d, false, func(k, j int) float64 { return b[k*d+j] },
		func(i, at int, sums []float64) {
			for j, v := range sums {
				out[i*d+at+j] = float32(v)
			}
		})
	return out
}

// Product returns A B, [n, n], summed in index order.
func Product(a, b []float64, n int) []float64 {
	out := make([]float64, n*n)
	products(a, n, n, n, false, func(k, j int) float64 { return b[k*n+j] },
		func(i, at int, sums []float64) { copy(out[i*n+at:], sums) })
	return out
}

// InnerProducts returns the inner products of all rows of x and y, [n, d], as [n, n], summed in
// float64 and in index order.
func InnerProducts(x, y []float32, n, d int) []float64 {
	out := make([]float64, n*n)
	products(Float64(x), n, d, n, false, func(k, j int) float64 { return float64(y[j*d+k]) },
		func(i, at int, sums []float64) { copy(out[i*n+at:], sums) })
	return out
}

// Gram returns the inner products of the rows of x, [n, d], as [n, n], summed as InnerProducts
// does it, in half the time.
func Gram(x []float32, n, d int) []float64 {
	out := make([]float64, n*n)
	products(Float64(x), n, d, n, true, func(k, j int) float64 { return float64(x[j*d+k]) },
		func(i, at int, sums []float64) {
			for j, v := range sums[:min(len(sums), i+1-at)] {
				out[i*n+at+j], out[(at+j)*n+i] = v, v
			}
		})
	return out
}
