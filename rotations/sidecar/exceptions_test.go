package sidecar

import (
	"testing"
)

// TestSidecarExceptions: the number survives both containers.
func TestSidecarExceptions(t *testing.T) {
	for container := range containers {
		d := newDocument(t)
		d.set("phaseconv.exceptions", 8)
		path := t.TempDir() + "/x"
		d.write(t, container, path)
		s, err := Read(t.Context(), path)
		if err != nil || s.Exceptions != 8 {
			t.Errorf("%s: %+v, %v", container, s, err)
		}
	}
}
