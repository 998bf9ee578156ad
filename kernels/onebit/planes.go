package onebit

import "fmt"

// Add is Score for the second and further planes of a code of several bits per
// number, k = mu + sum_p alpha_p M_p s_p: it adds scale[n] * sum_i q[i] s_i[n] to
// every out[h*ostride+n], as float32 rounded once.
func Add(out []float32, ostride int, t *Tables, bits []uint32, scales []uint16, n int) {
	if n <= 0 || t.heads == 0 {
		return
	}
	check(out, ostride, t, bits, scales, n, nil)
	const chunk = 16 * BlockKeys
	tmp := make([]float32, t.heads*chunk)
	for i := 0; i < n; i += chunk {
		m := min(chunk, n-i)
		Score(tmp, chunk, t, bits[i*t.stride:], scales[i:], m, nil)
		for h := range t.heads {
			row := out[h*ostride+i:][:m]
			for j, v := range tmp[h*chunk:][:m] {
				row[j] += v
			}
		}
	}
}

// ScoreAnchored scores keys that were coded in a frame of their own for every
// block of anchor positions (a multiple of 16): keys [k*anchor, (k+1)*anchor) see
// queries turned for that block. Query h of block k is q[(k*heads+h)*b:][:b], its
// offset is offsets[k*heads+h]; offsets may be nil. The rest is as for Score. t is
// only memory that is used again.
func ScoreAnchored(out []float32, ostride int, t *Tables, q []float32, heads, b, anchor int, bits []uint32,
	scales []uint16, n int, offsets []float32) {
	if anchor <= 0 || anchor%BlockKeys != 0 {
		panic(fmt.Sprintf("onebit: anchors of %d keys: want a multiple of %d", anchor, BlockKeys))
	}
	if n <= 0 {
		return
	}
	blocks := (n + anchor - 1) / anchor
	if len(q) < blocks*heads*b || offsets != nil && len(offsets) < blocks*heads {
		panic(fmt.Sprintf("onebit: %d numbers and %d offsets are too few for %d blocks of %d queries of %d", len(q),
			len(offsets), blocks, heads, b))
	}
	t.Build(q, b, heads, b)
	check(out, ostride, t, bits, scales, n, nil)
	for k := range blocks {
		at := k * anchor
		if k > 0 {
			t.Build(q[k*heads*b:], b, heads, b)
		}
		var off []float32
		if offsets != nil {
			off = offsets[k*heads:][:heads]
		}
		Score(out[at:], ostride, t, bits[at*t.stride:], scales[at:], min(anchor, n-at), off)
	}
}

// AddExceptions adds what the exceptions of n keys contribute for one query: key i
// has per numbers that stand beside its signs, at coordinates index[i*per+j] of the
// key, with binary16 values[i*per+j] that are added to the key:
//
//	out[i] += sum_j q[index[i*per+j]] * values[i*per+j],
//
// rounded to float32 at each product and each sum, from the left, starting with +0.
// q is in the basis of the keys and not of the code.
func AddExceptions(out, q []float32, index []uint8, values []uint16, per, n int) {
	if n <= 0 || per <= 0 {
		return
	}
	if len(out) < n || len(index) < n*per || len(values) < n*per {
		panic(fmt.Sprintf("onebit: %d scores, %d indices and %d values are too few for %d keys with %d exceptions", len(out),
			len(index), len(values), n, per))
	}
	for _, x := range index[:n*per] {
		if int(x) >= len(q) {
			panic(fmt.Sprintf("onebit: exception at coordinate %d of %d", x, len(q)))
		}
	}
	for i := range n {
		var s float32
		v := values[i*per:][:per]
		for j, x := range index[i*per:][:per] {
			s += float32(q[x] * widen(v[j]))
		}
		out[i] += s
	}
}
