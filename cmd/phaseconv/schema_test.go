package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/phaseconv/phaseconv/cmd/phaseconv/command"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/spec"
)

// schemaFile is the JSON Schema of the format. The validator is of others, so that our
// own reader of the schema (spec.ValidateManifest) is held against something.
const schemaFile = "../../spec/manifest.schema.json"

const id = "urn:phaseconv:manifest:1"

// compiler returns the schema under a pointer ("" is the manifest).
func compiler(t *testing.T) func(pointer string) *jsonschema.Schema {
	t.Helper()
	raw, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	if err := c.AddResource(id, doc); err != nil {
		t.Fatal(err)
	}
	return func(pointer string) *jsonschema.Schema {
		s, err := c.Compile(id + pointer)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

func parse(t *testing.T, raw []byte) any {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("%v\n%.300s", err, raw)
	}
	return v
}

// TestOutputs makes an artifact from a small model and validates everything that
// the commands print about it.
func TestOutputs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run := func(wantCode int, args ...string) []byte {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if code := command.Run(context.Background(), append([]string{"phaseconv"}, args...), &stdout,
			&stderr); code != wantCode {
			t.Fatalf("%v: exit code %d, want %d\n%s", args, code, wantCode, stderr.Bytes())
		}
		return stdout.Bytes()
	}
	schema := compiler(t)
	valid := func(pointer string, raw []byte, list bool) {
		t.Helper()
		s := schema(pointer)
		values := []any{parse(t, raw)}
		if list {
			values = values[0].([]any)
		}
		if len(values) == 0 {
			t.Errorf("%s: an empty list", pointer)
		}
		for _, v := range values {
			if err := s.Validate(v); err != nil {
				t.Errorf("%s: %v", pointer, err)
			}
		}
	}
	source, out := filepath.Join(dir, "source"), filepath.Join(dir, "out")
	tiny.HF(t, source, "mixtral", tiny.Options{})
	small := []string{"--ctx", "64", "--chunks", "1", "--json"}
	with := func(args ...string) []string { return append(args, small...) }

	for _, format := range []string{"gguf", "both"} {
		valid("#/$defs/Plan", run(0, "convert", source, "-o", out, "--format", format, "--dry-run", "--json"), true)
	}
	valid("#/$defs/VerifyJSON", run(0, with("convert", source, "-o", out, "--format", "both", "--code", "frame", "--calib-tokens", "256")...),
		false)
	manifest, err := os.ReadFile(filepath.Join(out, "phaseconv.json"))
	if err != nil {
		t.Fatal(err)
	}
	valid("", manifest, false)
	for _, container := range []string{"gguf", "safetensors"} {
		valid("#/$defs/VerifyJSON", run(0, with("verify", out, "--container", container, "--source", source)...), false)
	}
	valid("#/$defs/VerifyJSON", run(0, with("verify", out, "--code", "raw")...), false)
	valid("#/$defs/GenerateJSON", run(0, "generate", out, "-p", "It is", "-n", "3", "--json"), false)
	units := filepath.Join(dir, "units")
	valid("#/$defs/UnitsJSON", run(0, "convert", source, "-o", units, "--plan", "--units", "9", "--json"), false)
	valid("#/$defs/UnitsJSON", run(0, with("convert", source, "-o", units, "--code", "frame", "--calib-tokens", "64", "--unit",
		"1/4")...), false)
	published := filepath.Join(dir, "published")
	run(0, "rotations", "export", out, "-o", published)
	valid("#/$defs/ChecksJSON", run(0, "rotations", "check", published, "--base", source, "--json"), false)
	valid("#/$defs/ChecksJSON", run(1, "rotations", "check", dir, "--json"), false)
	valid("#/$defs/DiffJSON", run(0, "rotations", "diff", out, published, "--json"), false)
	valid("#/$defs/DiffJSON", run(1, "rotations", "diff", filepath.Join(out, "model.phase.gguf"),
		filepath.Join(out, "phaseconv.sidecar"), "--json"), false)
	valid("#/$defs/AuditJSON", run(0, with("audit", filepath.Join(out, "model.gguf"), "--calib-tokens", "256", "--code",
		"learned")...), false)
	files, err := filepath.Glob(filepath.Join(out, "*s*.*"))
	if err != nil {
		t.Fatal(err)
	}
	var binary []string
	for _, f := range files {
		if strings.HasSuffix(f, ".gguf") || strings.HasSuffix(f, ".safetensors") {
			binary = append(binary, f)
		}
	}
	valid("#/$defs/FileInfo", run(0, append([]string{"inspect", "--json", source + "/model.safetensors"}, binary...)...),
		true)

	rungs := filepath.Join(dir, "rungs")
	ladder := []string{"ladder", source, "-o", rungs, "--until", "RW1.1", "--fit-chunks", "1", "--queries", "16"}
	valid("#/$defs/LadderJSON", run(1, with(ladder...)...), false)
	valid("#/$defs/LadderJSON", run(1, "ladder", "show", rungs, "--json"), false)
	record, err := os.ReadFile(filepath.Join(rungs, "RW1.0-64.rung.json"))
	if err != nil {
		t.Fatal(err)
	}
	valid("#/$defs/LadderRecord", record, false)

	valid("#/$defs/ClaimsJSON", run(0, "claims", "--json"), false)

	// What fails is valid too.
	if err := os.WriteFile(filepath.Join(out, "config.json"), []byte("{}"), 0o666); err != nil {
		t.Fatal(err)
	}
	valid("#/$defs/VerifyJSON", run(1, with("verify", out, "--container", "safetensors")...), false)
	if err := os.Remove(filepath.Join(out, "phaseconv.json")); err != nil {
		t.Fatal(err)
	}
	valid("#/$defs/VerifyJSON", run(1, with("verify", out)...), false)
	run(2, "verify", out, "--no-such-flag")

	refused(t, schema(""), manifest)
	agree(t, schema(""), manifest)
}

// agree: phaseconv's own reader of the schema says what the validator says, about
// every change of one member of a manifest.
func agree(t *testing.T, s *jsonschema.Schema, manifest []byte) {
	t.Helper()
	root := parse(t, manifest)
	verdicts := map[bool]int{}
	try := func(path string) {
		t.Helper()
		b, err := json.Marshal(root)
		if err != nil {
			t.Fatal(err)
		}
		theirs, ours := s.Validate(root), spec.ValidateManifest(b)
		verdicts[ours == nil]++
		if (theirs == nil) != (ours == nil) {
			t.Errorf("%s: the validator says %v, phaseconv %v", path, theirs, ours)
		}
	}
	try("untouched")
	// The last entry of a list stands for all.
	var shorten func(v any)
	shorten = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, x := range v {
				shorten(x)
			}
		case map[string]any:
			for k, x := range v {
				if l, ok := x.([]any); ok && len(l) > 1 {
					v[k] = l[len(l)-1:]
				}
				shorten(v[k])
			}
		}
	}
	shorten(root)
	try("lists of one entry")
	values := []any{nil, true, "", "x", "0", strings.Repeat("a", 64), json.Number("-1"), json.Number("0"),
		json.Number("0.5"), json.Number("2"), json.Number("1000000000"),
		[]any{}, []any{json.Number("1")}, map[string]any{}, map[string]any{"1": json.Number("1")}}
	var walk func(v any, path string)
	walk = func(v any, path string) {
		switch v := v.(type) {
		case []any:
			if i := len(v) - 1; i >= 0 {
				old := v[i]
				for _, x := range values {
					v[i] = x
					try(fmt.Sprintf("%s[%d] = %v", path, i, x))
				}
				v[i] = old
				walk(old, fmt.Sprintf("%s[%d]", path, i))
			}
		case map[string]any:
			for k, old := range v {
				delete(v, k)
				try(path + "." + k + " missing")
				for _, x := range values {
					v[k] = x
					try(fmt.Sprintf("%s.%s = %v", path, k, x))
				}
				v[k] = old
				walk(old, path+"."+k)
			}
			v["extra"] = json.Number("1")
			try(path + ".extra")
			delete(v, "extra")
		}
	}
	walk(root, "")
	t.Logf("%d manifests are valid and %d are not, in both", verdicts[true], verdicts[false])
	if verdicts[true] < 100 || verdicts[false] < 1000 {
		t.Errorf("too few were tried")
	}
}

// refused: the schema does notice what is wrong with a manifest.
func refused(t *testing.T, s *jsonschema.Schema, manifest []byte) {
	t.Helper()
	for name, change := range map[string]func(m map[string]any){
		"version":            func(m map[string]any) { m["version"] = 3 },
		"no version":         func(m map[string]any) { delete(m, "version") },
		"unknown member":     func(m map[string]any) { m["extra"] = 1 },
		"unknown member two": func(m map[string]any) { m["code"].(map[string]any)["extra"] = 0 },
		"digest":             func(m map[string]any) { m["source"].(map[string]any)["sha256"] = "ABC" },
		"kind":               func(m map[string]any) { m["code"].(map[string]any)["kind"] = "magic" },
		"path":               func(m map[string]any) { m["files"].([]any)[0].(map[string]any)["name"] = "../x" },
		"beta as text":       func(m map[string]any) { m["layers"].([]any)[0].(map[string]any)["cos1bit"] = "0.8" },
		"no column": func(m map[string]any) {
			delete(m["layers"].([]any)[0].(map[string]any)["cos1bit"].(map[string]any), "raw")
		},
		"curve":         func(m map[string]any) { m["curves"].([]any)[0].(map[string]any)["points"] = []any{[]any{1, 2, 3}} },
		"nested report": func(m map[string]any) { m["measured"].(map[string]any)["ppl"].(map[string]any)["float"] = nil },
	} {
		var m map[string]any
		if err := json.Unmarshal(manifest, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if s.Validate(parse(t, b)) == nil {
			t.Errorf("%s: the schema takes it", name)
		}
	}
}

// TestSchemaItself: the schema is a schema, whatever its references.
func TestSchemaItself(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	var root struct {
		Defs map[string]any `json:"$defs"`
	}
	if err := json.Unmarshal(raw, &root); err != nil {
		t.Fatal(err)
	}
	schema := compiler(t)
	for name := range root.Defs {
		schema("#/$defs/" + name)
	}
	if len(root.Defs) < 20 {
		t.Errorf("%d definitions", len(root.Defs))
	}
}
