package ladder

import (
	"context"
	"fmt"
	"testing"
)

// BenchmarkToken times one decoded token of one KV head of 64 numbers with three query heads:
// attention over n keys, read by the same loop as slots are, against a state of m slots whose
// masses are measured with q queries. Compare within one run; a cache of F16 is not modelled.
func BenchmarkToken(b *testing.B) {
	const d, G, near = 64, 3, slotWindow + sinks
	x := randomHead(3, 512, d, G, 0.5)
	filled := func(o slotOptions, m int) *slots {
		s := newSlots(o, m, d, x.K[:d], nil)
		for i := range m {
			s.on[i] = true
			copy(s.K[i*d:], x.K[i%512*d:][:d])
			copy(s.V[i*d:], x.V[i%512*d:][:d])
		}
		s.used = m
		return s
	}
	for _, n := range []int{512, 8192, 131072} {
		b.Run(fmt.Sprintf("attention/n=%d", n), func(b *testing.B) {
			s := filled(slotOptions{}, n)
			scores, num := make([]float64, n+1), make([]float64, d)
			for b.Loop() {
				for g := range G {
					s.read(x.Q[g*512*d:][:d], 4, scores, num)
				}
			}
		})
	}
	for _, m := range []int{64, 128, 256} {
		for _, q := range []int{256, 4096} {
			b.Run(fmt.Sprintf("slots/m=%d/q=%d", m, q), func(b *testing.B) {
				st, err := fitStats(context.Background(), []*head{x, randomHead(4, 2048, d, G, 0.5)}, q)
				if err != nil {
					b.Fatal(err)
				}
				in := slotted(b, x, st, slotOptions{window: slotWindow, sinks: sinks})
				o := slotOptions{cost: costProd, kappa: rungKappa, saturation: rungSaturation, stored: storedF16}
				s := newSlots(o, m, d, st.mu, st.keyMean)
				exact := filled(slotOptions{}, near)
				scores, num := make([]float64, m+near+1), make([]float64, d)
				t := 0
				step := func() {
					at := t % 512 * d
					t++
					s.label = s.label[:0] // replay's record, no part of the state
					s.push(x.K[at:at+d], x.V[at:at+d], in.white[at:at+d], in.mass[at/d])
					for g := range G {
						s.read(x.Q[g*512*d:][:d], 4, scores, num)
						exact.read(x.Q[g*512*d:][:d], 4, scores, num)
					}
				}
				for range m + 1 {
					step()
				}
				for b.Loop() {
					step()
					if _, err := st.mass(context.Background(), x.K[:d]); err != nil {
						b.Fatal(err)
					}
					st.whiten(x.K[:d])
				}
			})
		}
	}
}
