//go:build !amd64 || !gc || noasm

package fmath

// Without vector code every element takes the loops of vec.go.

func vectorised(int) int { return 0 }

func expBlocks(dst, src []float32)                                              {}
func siluBlocks(dst, gate, up []float32)                                        {}
func geluBlocks(dst, gate, up []float32)                                        {}
func maxBlocks(x []float32, part *[lanes]float32)                               {}
func expSumBlocks(dst, x []float32, shift, scale float32, part *[lanes]float64) {}
func scaleBlocks(x []float32, s float32)                                        {}
func sumBlocks(x []float32, part *[lanes]float64)                               {}
func sumSqBlocks(x []float32, part *[lanes]float64)                             {}
func scaleMulBlocks(dst, x []float32, s float32, w []float32)                   {}
func addScaledBlocks(y, x []float32, s float32)                                 {}
