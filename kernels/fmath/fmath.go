// Package fmath: PLACEHOLDER written by the lead so that kernels/rope compiles.
// The author of kernels/fmath replaces the bodies by deterministic versions and keeps these names and signatures:
// SinCos, Pow, Log, Exp (float64).
package fmath

import "math"

// SinCos returns the sine and cosine of x radians.
func SinCos(x float64) (sin, cos float64) { return math.Sincos(x) }

// Pow returns x to the y for x > 0.
func Pow(x, y float64) float64 { return math.Pow(x, y) }

// Log returns the natural logarithm of x.
func Log(x float64) float64 { return math.Log(x) }

// Exp returns e to the x.
func Exp(x float64) float64 { return math.Exp(x) }
