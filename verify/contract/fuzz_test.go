package contract_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
)

// FuzzManifest: whatever the bytes, ParseManifest returns, and a manifest that it
// accepts means the same after it is written again. Every input is tried as it is
// and with its digest made to fit, or nothing behind the digest would be reached.
func FuzzManifest(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*.json")
	if err != nil || len(seeds) < 2 {
		f.Fatalf("seeds %v, %v", seeds, err)
	}
	for _, path := range seeds {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		b = bytes.Replace(b, []byte(`"version": 1`), []byte(`"version": 2`), 1)
		f.Add(bytes.Replace(b, []byte(`"alloc"`), []byte(`"parts": "kv", "group_dim": 64, "alloc"`), 1))
	}
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":2, "manifest_sha256": "0"}`))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		sealed := bytes.Clone(raw)
		if spec.SealManifest(sealed) != nil {
			sealed = nil
		}
		for _, b := range [][]byte{raw, sealed} {
			m, err := contract.ParseManifest(b)
			if err != nil {
				continue
			}
			for _, x := range m.Files {
				if x.Name != filepath.Base(x.Name) {
					t.Fatalf("file %q", x.Name)
				}
			}
			again, err := contract.MarshalManifest(m)
			if err != nil {
				t.Fatal(err)
			}
			n, err := contract.ParseManifest(again)
			if err != nil {
				t.Fatal(err)
			}
			x, err1 := json.Marshal(m)
			y, err2 := json.Marshal(n)
			if err1 != nil || err2 != nil || !bytes.Equal(x, y) {
				t.Fatalf("%s\nbecame %s (%v, %v)", x, y, err1, err2)
			}
		}
	})
}

// TestManifestDigest: the recipe of artifact.md, section 6, by hand.
func TestManifestDigest(t *testing.T) {
	raw := read(t, "testdata/small.json")
	if err := spec.CheckManifest(raw); err != nil {
		t.Fatal(err)
	}
	m, err := contract.ParseManifest(raw)
	if err != nil {
		t.Fatal(err)
	}
	// Computed with: sed -E 's/("manifest_sha256": ")[0-9a-f]{64}/\1'$(printf '0%.0s' $(seq 64))'/'
	// small.json | sha256sum
	const want = "a0cc757070d87e94396d0fcbde2575a38e0390aad2779d5b5536461d8ad75e15"
	if m.SHA256 != want {
		t.Errorf("digest %s, want %s", m.SHA256, want)
	}
	before := m.SHA256
	m.Seed++
	if _, err := contract.MarshalManifest(m); err != nil || m.SHA256 == before {
		t.Errorf("another seed has the same digest %s (%v)", m.SHA256, err)
	}
	for name, bad := range map[string][]byte{
		"twice":         bytes.Replace(raw, []byte(`"tool"`), []byte(`"manifest_sha256": "`+want+`", "tool"`), 1),
		"none":          bytes.Replace(raw, []byte(`"manifest_sha256"`), []byte(`"manifest_sha512"`), 1),
		"without space": bytes.Replace(raw, []byte(`"manifest_sha256": `), []byte(`"manifest_sha256":`), 1),
		"upper case":    bytes.Replace(raw, []byte(want), bytes.ToUpper([]byte(want)), 1),
		"short":         bytes.Replace(raw, []byte(want), []byte(want[1:]), 1),
		"cut":           raw[:bytes.Index(raw, []byte(want))+10],
		"more":          append(bytes.Clone(raw), "{}\n"...),
	} {
		if reflect.DeepEqual(bad, raw) {
			t.Fatalf("%s: nothing changed", name)
		}
		if m, err := contract.ParseManifest(bad); err == nil {
			t.Errorf("%s: accepted %+v", name, m)
		}
	}
}
