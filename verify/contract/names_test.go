package contract_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
)

// TestFormerNames: artifacts whose sidecar and fold still end in .safetensors are
// read, whole and as published rotations.
func TestFormerNames(t *testing.T) {
	dir, src := artifact(t, recipe{family: "llama", tiny: tiny.Options{Seed: 1}})
	former := map[string]string{spec.SafetensorsSidecarName: "phaseconv.safetensors", spec.FoldName: spec.FormerFoldName}
	for now, then := range former {
		if err := os.Rename(filepath.Join(dir, now), filepath.Join(dir, then)); err != nil {
			t.Fatal(err)
		}
	}
	editManifest(t, dir, func(m *spec.Manifest) {
		for i := range m.Files {
			if then := former[m.Files[i].Name]; then != "" {
				m.Files[i].Name = then
			}
		}
		for i := range m.Artifacts {
			if then := former[m.Artifacts[i].Sidecar]; then != "" {
				m.Artifacts[i].Sidecar = then
			}
		}
	})
	if v := checkSource(t, dir, "safetensors", src); !v.OK {
		t.Errorf("%v", failed(v.Contract))
	}
	checks := &contract.Checker{}
	p, err := contract.OpenPublished(t.Context(), dir, checks)
	if err != nil || p == nil || p.Fold == nil {
		t.Fatalf("%v", failed(checks.Checks))
	}
	if got := strings.Join(contract.PublishedFiles(p.Manifest),
		" "); got != spec.FormerFoldName+" "+spec.GGUFSidecarName+" phaseconv.safetensors" {
		t.Errorf("published files %s", got)
	}
}
