package contract_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
)

// optional lists the members of a manifest that may be missing, by the last part of
// their path.
var optional = []string{
	"fusion", "notes", "layers", "curves", "measured", "experts", "text", "stock", "train", "delta", "added",
}

// TestManifestStrict changes every member of a manifest, one at a time, in the ways
// that the schema forbids: each is refused, at each place, with the digest made to
// fit, and the error names the member.
func TestManifestStrict(t *testing.T) {
	raw := read(t, "testdata/full.json")
	if _, err := contract.ParseManifest(raw); err != nil {
		t.Fatal(err)
	}
	var root any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&root); err != nil {
		t.Fatal(err)
	}
	tried := map[string]int{}
	// attempt writes root, which has just been changed, and reads it.
	attempt := func(what, path, member string, accept bool) {
		t.Helper()
		b, err := json.MarshalIndent(root, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		// 1e999 is a number of JSON that no float64 holds, "a NaN": JSON has no other.
		b = bytes.ReplaceAll(b, []byte(`"@huge"`), []byte("1e999"))
		if err := spec.SealManifest(b); err != nil && member != "manifest_sha256" &&
			!strings.EqualFold(member, "manifest_sha256") {
			t.Fatal(err)
		}
		tried[what]++
		_, err = contract.ParseManifest(b)
		switch {
		case accept && err != nil:
			t.Errorf("%s %s.%s: %v", what, path, member, err)
		case !accept && err == nil:
			t.Errorf("%s %s.%s is accepted", what, path, member)
		case !accept && !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(member)) &&
			!strings.Contains(err.Error(), "json: "):
			t.Errorf("%s %s.%s: the error does not name it: %v", what, path, member, err)
		}
	}
	var walk func(v any, path string)
	walk = func(v any, path string) {
		switch v := v.(type) {
		case []any:
			if len(v) > 0 {
				walk(v[len(v)-1], path+"["+strconv.Itoa(len(v)-1)+"]")
			}
		case map[string]any:
			for _, k := range slices.Sorted(maps.Keys(v)) {
				old := v[k]
				free := strings.HasSuffix(path, "effective_bits") // a map of contexts
				delete(v, k)
				attempt("without", path, k, free || slices.Contains(optional, k) && (k != "layers" || path == ""))
				if !free {
					v[strings.ToUpper(k)] = old
					attempt("in capitals", path, strings.ToUpper(k), false)
					delete(v, strings.ToUpper(k))
				}
				if n, ok := old.(json.Number); ok {
					v[k] = "@huge"
					attempt("endless", path, k, false)
					if !strings.ContainsAny(string(n), ".eE") && !free && isCount(k) {
						for _, x := range []any{-1, json.Number("0.5")} {
							v[k] = x
							attempt(fmt.Sprint("count ", x), path, k, false)
						}
					}
				}
				v[k] = map[string]any{"surprise": true}
				attempt("object", path, k, false)
				v[k] = old
				walk(old, strings.TrimPrefix(path+"."+k, "."))
			}
			if !strings.HasSuffix(path, "effective_bits") {
				v["surprise"] = 1
				attempt("more", path, "surprise", false)
				delete(v, "surprise")
			}
		}
	}
	walk(root, "")
	t.Log(tried)
	for what, atLeast := range map[string]int{"without": 100, "in capitals": 100, "endless": 40, "count -1": 25,
		"object": 100, "more": 12} {
		if tried[what] < atLeast {
			t.Errorf("%q was tried %d times", what, tried[what])
		}
	}
}

// isCount: the integers of a manifest; other numbers may happen to be whole.
func isCount(member string) bool {
	return slices.Contains([]string{
		"seed", "layers", "n_heads", "n_kv_heads", "head_dim", "hidden_size", "vocab_size", "context_length", "experts",
		"exceptions", "anchor", "sink", "recent", "tokens", "context", "windows", "tensors", "bytes", "layer", "head",
		"ctx", "chunks", "k_f16", "k_code", "sidecar", "rotation_k", "rotation_v", "target_ctx", "cache_tokens",
	}, member)
}

// TestManifestEncoding: what a decoder would quietly repair.
func TestManifestEncoding(t *testing.T) {
	raw := read(t, "testdata/full.json")
	for name, change := range map[string][2]string{
		"not UTF-8":   {`"tool": "`, "\"tool\": \"\xff"},
		"NaN":         {`"seed": `, `"seed": NaN, "x": `},
		"a fraction":  {`"version": 1,`, `"version": 1.0,`},
		"a key twice": {`"seed": `, `"seed": 5, "seed": `},
	} {
		b := bytes.Replace(raw, []byte(change[0]), []byte(change[1]), 1)
		if bytes.Equal(b, raw) {
			t.Fatalf("%s: nothing changed", name)
		}
		if err := spec.SealManifest(b); err != nil {
			t.Fatal(err)
		}
		if _, err := contract.ParseManifest(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestManifestWithoutCommand: a library call makes a manifest like any other.
func TestManifestWithoutCommand(t *testing.T) {
	m, err := contract.ParseManifest(read(t, "testdata/full.json"))
	if err != nil {
		t.Fatal(err)
	}
	m.Command, m.Identities = nil, nil
	b, err := contract.MarshalManifest(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := contract.ParseManifest(b); err != nil {
		t.Error(err)
	}
}
