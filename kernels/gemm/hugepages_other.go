//go:build !linux

package gemm

func preferHugePages([]float32) {}
