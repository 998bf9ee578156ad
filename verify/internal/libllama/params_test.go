package libllama

import (
	"strings"
	"testing"
	"unsafe"
)

// TestLayout shows that checkDefaults refuses a library with one field more or
// less: the defaults of such a release, written and read by this package's layout.
func TestLayout(t *testing.T) {
	m, c := returnedModelParams{P: modelDefaults}, returnedContextParams{P: contextDefaults}
	if err := checkDefaults(m, c); err != nil {
		t.Fatal(err)
	}
	// Padding is not part of a default, so lay the bytes out anew from zero.
	shifted := func(at, by int) returnedContextParams {
		in := c
		src := unsafe.Slice((*byte)(unsafe.Pointer(&in)), unsafe.Sizeof(in))
		var out returnedContextParams
		dst := unsafe.Slice((*byte)(unsafe.Pointer(&out)), unsafe.Sizeof(out))
		copy(dst, src[:at])
		if by > 0 {
			copy(dst[at+by:], src[at:])
		} else {
			copy(dst[at:], src[at-by:])
		}
		return out
	}
	size := int(unsafe.Sizeof(c.P))
	// Wherever a field of 8 bytes comes or goes, up to the zeros at the end. A 4 byte
	// field does the same where pointers need not move.
	last := int(unsafe.Offsetof(c.P.Unified))
	refused := 0
	for at := 0; at < last; at += 4 {
		for _, by := range []int{8, 4, -4, -8} {
			x := shifted(at, by)
			if x == c {
				continue // only zeros have moved
			}
			if err := checkDefaults(m, x); err == nil {
				t.Errorf("%d bytes at %d of %d: not refused", by, at, size)
			} else if !strings.Contains(err.Error(), "llama_context_default_params") {
				t.Errorf("%d bytes at %d: %v", by, at, err)
			}
			refused++
		}
	}
	if refused < last/2 {
		t.Errorf("%d layouts tried", refused)
	}
	// A longer struct is seen even if all known fields are in their places.
	c.Spare[0] = 1
	if checkDefaults(m, c) == nil {
		t.Error("a longer context struct is not refused")
	}
	m.P.GPULayers = 999
	if err := checkDefaults(m, returnedContextParams{P: contextDefaults}); err == nil ||
		!strings.Contains(err.Error(), "llama_model_default_params") {
		t.Errorf("another default of models: %v", err)
	}
}
