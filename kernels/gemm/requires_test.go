package gemm

import (
	"os"
	"testing"

	"github.com/phaseconv/phaseconv/kernels/internal/asmcheck"
)

// TestRequires holds the assembly against the gates of gemm_amd64.go.
func TestRequires(t *testing.T) {
	asm, err := os.ReadFile("gemm_amd64.s")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range asmcheck.Requires(string(asm), asmcheck.AMD64) {
		t.Error(err)
	}
}
