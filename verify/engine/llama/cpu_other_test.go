//go:build !unix

package llama_test

import "testing"

func ownCPU(t *testing.T) float64 {
	t.Helper()
	t.Skip("NOT TESTED: CPU time is read on unix only")
	return 0
}
