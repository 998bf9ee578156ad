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
