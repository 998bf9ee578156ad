package linalg

import "context"

const (
	memorySteps = 12 // that Minimize learns the curvature from
	maxIdle     = 3  // steps in a row that gain too little
)

// Minimize lowers f, which returns its value and gradient, from x by L-BFGS (Liu and
// Nocedal 1989), with about the curvature of each coordinate to start from. It ends
// after so many steps, or when three in a row gain less than gain relative to f. It
// returns where it ended, the value there and the number of steps. No step goes up.
// (gonum's has other bits on machines that fuse products and sums.) It fails when ctx
// ends, which it looks at after each call of f; an f that takes long may then return
// early, with any numbers.
func Minimize(
	ctx context.Context, x, curvature []float64, f func([]float64) (float64, []float64), steps int, gain float64,
) (
	at []float64, value float64, taken int, err error,
) {
	var memory curvatures
	fx, g := f(x)
	if ctx.Err() != nil {
		return nil, 0, 0, context.Cause(ctx)
	}
	idle, n := 0, 0
	for ; n < steps && idle < maxIdle; n++ {
		dir := memory.direction(g, curvature)
		slope := -Dot(dir, g)
		if !(slope < 0) {
			break
		}
		var next []float64
		var fn float64
		var gn []float64
		t := 1.0
		for ; t > 1e-6; t /= 2 {
			next = make([]float64, len(x))
			for j := range x {
				next[j] = x[j] - float64(t*dir[j])
			}
			fn, gn = f(next)
			if ctx.Err() != nil {
				return nil, 0, 0, context.Cause(ctx)
			}
			if fn < fx+float64(1e-4*float64(t*slope)) {
				break
			}
		}
		if t <= 1e-6 {
			break
		}
		s, y := make([]float64, len(x)), make([]float64, len(x))
		for j := range x {
			s[j], y[j] = next[j]-x[j], gn[j]-g[j]
		}
		if sy := Dot(s, y); sy > 1e-12*Norm(s)*Norm(y) {
			memory = append(memory, change{s, y, 1 / sy})
			if len(memory) > memorySteps {
				memory = memory[1:]
			}
		}
		if fx-fn < gain*fx {
			idle++
		} else {
			idle = 0
		}
		x, fx, g = next, fn, gn
	}
	return x, fx, n, nil
}

// A change is what a step did to x and to the gradient; rho is 1 / (s . y).
type change struct {
	s, y []float64
	rho  float64
}

// curvatures are the last changes, the oldest first.
type curvatures []change

// direction returns about the inverse curvature times the gradient g: the two loops of L-BFGS.
// curvature is that of each coordinate before anything is learned.
func (memory curvatures) direction(g, curvature []float64) []float64 {
	dir := append([]float64(nil), g...)
	alpha := make([]float64, len(memory))
	for i := len(memory) - 1; i >= 0; i-- {
		m := memory[i]
		alpha[i] = float64(m.rho * Dot(m.s, dir))
		for j, v := range m.y {
			dir[j] -= float64(alpha[i] * v)
		}
	}
	scale := 1.0
	if len(memory) > 0 {
		m := memory[len(memory)-1]
		var yhy float64
		for j, v := range m.y {
			yhy += float64(v*v) / curvature[j]
		}
		scale = 1 / (m.rho * yhy)
	}
	for j := range dir {
		dir[j] *= scale / curvature[j]
	}
	for i, m := range memory {
		beta := float64(m.rho * Dot(m.y, dir))
		for j, v := range m.s {
			dir[j] += float64((alpha[i] - beta) * v)
		}
	}
	return dir
}
