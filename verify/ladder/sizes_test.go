package ladder

import (
	"slices"
	"testing"
)

// TestSizes: steps double to half the context, allotments reach five eighths of it.
func TestSizes(t *testing.T) {
	if got, want := ladderSizes(512), []int{8, 16, 32, 64, 128, 256}; !slices.Equal(got, want) {
		t.Errorf("sizes %v, want %v", got, want)
	}
	if got, want := ladderSizes(64), []int{8, 16, 32}; !slices.Equal(got, want) {
		t.Errorf("sizes %v, want %v", got, want)
	}
	want := []int{0, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320}
	if got := allotments(512); !slices.Equal(got, want) {
		t.Errorf("allotments %v, want %v", got, want)
	}
}

// TestDecay: up to 512 tokens it is the source's; over longer contexts it adds up to an eighth.
func TestDecay(t *testing.T) {
	for T, want := range map[int]float64{256: 1.0 / 4096, 512: 1.0 / 4096, 2048: 1.0 / 16384} {
		if got := rungDecay(T); got != want {
			t.Errorf("%d tokens: %g, want %g", T, got, want)
		}
	}
}
