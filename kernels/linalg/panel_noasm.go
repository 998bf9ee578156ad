//go:build !amd64 || !gc || noasm

package linalg

func vectorised() bool { return false }

func subProductsBlock(y, coef, x []float64) {}
