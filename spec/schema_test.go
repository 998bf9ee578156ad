package spec

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// types are the JSON objects of manifest.go, advise.go and their like; the schema and reports.md
// describe them under the same names. report.json, a report page's own data, is not
// part of the format.
var types = map[string]reflect.Type{
	"Manifest": reflect.TypeFor[Manifest](), "Source": reflect.TypeFor[Source](), "Model": reflect.TypeFor[Model](),
	"CodeInfo": reflect.TypeFor[CodeInfo](), "Text": reflect.TypeFor[Text](), "Identity": reflect.TypeFor[Identity](),
	"Artifact": reflect.TypeFor[Artifact](), "File": reflect.TypeFor[File](), "Columns": reflect.TypeFor[Columns](),
	"Layer": reflect.TypeFor[Layer](), "Curve": reflect.TypeFor[Curve](), "Check": reflect.TypeFor[Check](),
	"VerifyJSON": reflect.TypeFor[VerifyJSON](), "PPLJSON": reflect.TypeFor[PPLJSON](),
	"KLDJSON":      reflect.TypeFor[KLDJSON](),
	"FunctionJSON": reflect.TypeFor[FunctionJSON](), "BytesJSON": reflect.TypeFor[BytesJSON](),
	"AuditJSON": reflect.TypeFor[AuditJSON](),
	"StockJSON": reflect.TypeFor[StockJSON](), "AdviseJSON": reflect.TypeFor[AdviseJSON](),
	"AdviseChoice": reflect.TypeFor[AdviseChoice](), "AdviseLine": reflect.TypeFor[AdviseLine](),
	"AdviseImprove": reflect.TypeFor[AdviseImprove](), "AdviseExpected": reflect.TypeFor[AdviseExpected](),
	"PositionBand": reflect.TypeFor[PositionBand](),
	"FFNFold":      reflect.TypeFor[FFNFold](), "FFNTry": reflect.TypeFor[FFNTry](),
	"FFNRotationsJSON": reflect.TypeFor[FFNRotationsJSON](), "FFNProducts": reflect.TypeFor[FFNProducts](),
	"QuantizedJSON": reflect.TypeFor[QuantizedJSON](),
	"FFNMean":       reflect.TypeFor[FFNMean](), "FFNVerdict": reflect.TypeFor[FFNVerdict](),
	"AdviseRow": reflect.TypeFor[AdviseRow](), "FFNRow": reflect.TypeFor[FFNRow](),
	"UnitsJSON": reflect.TypeFor[UnitsJSON](), "Unit": reflect.TypeFor[Unit](), "UnitLayer": reflect.TypeFor[UnitLayer](),
	"ChecksJSON": reflect.TypeFor[ChecksJSON](), "EngineIdentity": reflect.TypeFor[EngineIdentity](),
	"Graph": reflect.TypeFor[Graph](), "GraphCache": reflect.TypeFor[GraphCache](), "GraphRope": reflect.TypeFor[GraphRope](),
	"GraphTensor": reflect.TypeFor[GraphTensor](),
	"DiffJSON":    reflect.TypeFor[DiffJSON](), "DiffKey": reflect.TypeFor[DiffKey](),
	"DiffHead": reflect.TypeFor[DiffHead](), "DiffGroup": reflect.TypeFor[DiffGroup](),
	"DiffTensor": reflect.TypeFor[DiffTensor](),
	"ClaimsJSON": reflect.TypeFor[ClaimsJSON](), "Claim": reflect.TypeFor[Claim](), "Need": reflect.TypeFor[Need](), "Theorem": reflect.TypeFor[Theorem](),
	"Rung": reflect.TypeFor[Rung](), "LadderJSON": reflect.TypeFor[LadderJSON](), "LadderRecord": reflect.TypeFor[LadderRecord](),
	"GenerateJSON": reflect.TypeFor[GenerateJSON](), "GeneratedText": reflect.TypeFor[GeneratedText](),
	"LadderLayer": reflect.TypeFor[LadderLayer](), "LadderStep": reflect.TypeFor[LadderStep](), "LadderLive": reflect.TypeFor[LadderLive](),
}

// object is what the tests need of a schema.
type object struct {
	Ref                  string             `json:"$ref"`
	Type                 any                `json:"type"` // a name or a list of names
	AnyOf                []object           `json:"anyOf"`
	Properties           map[string]*object `json:"properties"`
	Required             []string           `json:"required"`
	AdditionalProperties any                `json:"additionalProperties"`
	Items                any                `json:"items"`
	Const                any                `json:"const"`
	Defs                 map[string]*object `json:"$defs"`
}

func schema(t *testing.T) map[string]*object {
	t.Helper()
	raw, err := os.ReadFile("manifest.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var root object
	if err := json.Unmarshal(raw, &root); err != nil {
		t.Fatal(err)
	}
	out := root.Defs
	out["Manifest"] = &root
	return out
}

// text reads the tables of reports.md: object, member, type.
func text(t *testing.T) map[string]map[string]string {
	t.Helper()
	raw, err := os.ReadFile("reports.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]map[string]string{}
	row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]+) \\|")
	for _, m := range regexp.MustCompile(`<!-- (\w+) -->\n((?:\|.*\n)+)`).FindAllStringSubmatch(string(raw), -1) {
		if out[m[1]] != nil {
			t.Errorf("reports.md has two tables of %s", m[1])
		}
		out[m[1]] = map[string]string{}
		for _, r := range row.FindAllStringSubmatch(m[2], -1) {
			out[m[1]][r[1]] = r[2]
		}
	}
	return out
}

// describe puts the type of a member in the words of reports.md.
func describe(ty reflect.Type, optional bool) string {
	s := ""
	switch {
	case ty == reflect.TypeFor[[][2]float64]():
		s = "list of pair"
	case ty.Kind() == reflect.Pointer:
		s = describe(ty.Elem(), false)
		if !optional {
			s += " or null"
		}
	case ty.Kind() == reflect.Slice:
		s = "list of " + describe(ty.Elem(), false)
	case ty.Kind() == reflect.Map:
		s = "map of " + describe(ty.Elem(), false)
	case ty.Kind() == reflect.Struct:
		s = ty.Name()
	default:
		s = map[reflect.Kind]string{reflect.Bool: "boolean", reflect.String: "text", reflect.Float64: "number",
			reflect.Int: "integer", reflect.Int64: "integer", reflect.Uint64: "integer"}[ty.Kind()]
	}
	if optional {
		s += ", optional"
	}
	return s
}

// describeSchema does the same for a member of the schema.
func describeSchema(o *object, required bool) string {
	s := ""
	name, _ := o.Type.(string)
	if list, ok := o.Type.([]any); ok && len(list) == 2 && list[1] == "null" {
		inner := *o
		inner.Type = list[0]
		return describeSchema(&inner, required) + " or null"
	}
	switch {
	case o.Ref != "":
		s = strings.TrimPrefix(o.Ref, "#/$defs/")
	case len(o.AnyOf) == 2 && o.AnyOf[1].Type == "null":
		s = describeSchema(&o.AnyOf[0], true) + " or null"
	case o.Const != nil:
		s = "integer"
	case name == "array":
		if o.Items == false {
			s = "pair"
		} else {
			s = "list of " + describeSchema(again(o.Items), true)
		}
	case name == "object":
		s = "map of " + describeSchema(again(o.AdditionalProperties), true)
	case name == "string":
		s = "text"
	default:
		s = name
	}
	if !required {
		s += ", optional"
	}
	return s
}

func again(v any) *object {
	b, _ := json.Marshal(v)
	var o object
	if json.Unmarshal(b, &o) != nil {
		return &object{}
	}
	return &o
}

// TestSchema: types, schema and text have the same objects with the same members
// of the same types, and all three know which may be absent or null.
func TestSchema(t *testing.T) {
	defs, tables := schema(t), text(t)
	if a, b := slices.Sorted(maps.Keys(defs)), slices.Sorted(maps.Keys(tables)); !slices.Equal(a, b) {
		t.Errorf("the schema has %v\nreports.md has %v", a, b)
	}
	for name, o := range defs {
		if o.AdditionalProperties != false {
			t.Errorf("%s: the schema allows members that are not described", name)
		}
		inSchema := map[string]string{}
		for k, p := range o.Properties {
			inSchema[k] = describeSchema(p, slices.Contains(o.Required, k))
		}
		inText := map[string]string{}
		for k, v := range tables[name] {
			inText[k] = strings.ReplaceAll(v, "digest", "text")
		}
		compare(t, name+": schema and reports.md", inSchema, inText)
		ty := types[name]
		if ty == nil {
			continue
		}
		inGo := map[string]string{}
		for i := range ty.NumField() {
			f := ty.Field(i)
			key, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
			inGo[key] = describe(f.Type, rest == "omitempty")
		}
		for k, v := range inSchema {
			// A nil list of Go is null in JSON; where that happens the schema says so.
			if strings.HasPrefix(inGo[k], "list of") && v == inGo[k]+" or null" {
				inGo[k] = v
			}
		}
		compare(t, name+": Go and schema", inGo, inSchema)
	}
	for name := range types {
		if defs[name] == nil {
			t.Errorf("%s is not in the schema", name)
		}
	}
}

func compare(t *testing.T, what string, a, b map[string]string) {
	t.Helper()
	for k, v := range a {
		if b[k] != v {
			t.Errorf("%s: %s is %q and %q", what, k, v, b[k])
		}
	}
	for k, v := range b {
		if _, ok := a[k]; !ok {
			t.Errorf("%s: %s is absent and %q", what, k, v)
		}
	}
}

// TestTypes: no type of these files escapes TestSchema.
func TestTypes(t *testing.T) {
	n := 0
	for _, name := range []string{"manifest.go", "advise.go", "units.go", "diff.go", "claims.go", "generate.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(node ast.Node) bool {
			if s, ok := node.(*ast.TypeSpec); ok {
				if n++; types[s.Name.Name] == nil {
					t.Errorf("type %s is not compared with the schema", s.Name.Name)
				}
			}
			return true
		})
	}
	if n < 20 {
		t.Errorf("only %d types", n)
	}
}

// TestKeysInText: sidecar.md has exactly the keys that spec.go names, and the
// limits and names of files stand in the text.
func TestKeysInText(t *testing.T) {
	sidecar, err := os.ReadFile("sidecar.md")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(phaseconv\\.[a-z0-9_.]+)` \\|").FindAllSubmatch(sidecar, -1) {
		got = append(got, string(m[1]))
	}
	slices.Sort(got)
	f, err := parser.ParseFile(token.NewFileSet(), "spec.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	ast.Inspect(f, func(node ast.Node) bool {
		if s, ok := node.(*ast.ValueSpec); ok && strings.HasPrefix(s.Names[0].Name, "Key") {
			want = append(want, strings.Trim(s.Values[0].(*ast.BasicLit).Value, `"`))
		}
		return true
	})
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("sidecar.md has keys %q\nspec.go has %q", got, want)
	}
	all := ""
	for _, name := range []string{"code.md", "sidecar.md", "artifact.md"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all += string(b)
	}
	for _, s := range []string{ManifestName, GGUFModelName, GGUFSidecarName, SafetensorsSidecarName, FoldName, "`" + FoldList + "`", `"` + ConfigObject + `": {`, `"` + BasisPostRope + `"`,
		"layers, 1 to 4096", "per layer, 1 to 4096", "even, 2 to 4096", "0 to 1048576", "min(2048, 8 d)", "2048 signs and 8 signs per number", "at most 2048. Writers SHOULD stay below 512", "at most 1048576 bytes",
		ModelPrefix + KeyVersion, ModelPrefix + KeySourceSHA256, ModelPrefix + KeyCode, ModelPrefix + KeyTool} {
		if !strings.Contains(all, s) {
			t.Errorf("the text lacks %q", s)
		}
	}
	if MaxLayers != 4096 || MaxHeads != 4096 || MaxHeadDim != 4096 || MaxBits != 2048 ||
		MaxBitsPerNumber != 8 || MaxAnchor != 1048576 || MaxSink != MaxAnchor ||
		MaxRecent != MaxAnchor || MaxGroupDim != 2048 || DefaultGroupDim != 512 || MaxGroupsText != 1048576 {
		t.Error("a limit changed, but not the text")
	}
}

// TestLinks: what the pages link to is there, and so are the sections they name.
func TestLinks(t *testing.T) {
	pages := []string{"README.md", "code.md", "sidecar.md", "artifact.md", "reports.md", "vectors.md", "ladder.md"}
	body := map[string]string{}
	for _, p := range pages {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		body[p] = string(b)
	}
	section := regexp.MustCompile(`\[?(\w+\.md)(?:\]\(\w+\.md\))?, section (\d+)`)
	for p, b := range body {
		for _, m := range regexp.MustCompile(`\]\(([^)#]+)\)`).FindAllStringSubmatch(b, -1) {
			if _, err := os.Stat(m[1]); err != nil {
				t.Errorf("%s: %v", p, err)
			}
		}
		for _, m := range section.FindAllStringSubmatch(b, -1) {
			if !strings.Contains(body[m[1]], "\n## "+m[2]+". ") {
				t.Errorf("%s: %s has no section %s", p, m[1], m[2])
			}
		}
	}
}

// TestValidateManifest: the reader of the schema knows every word in it, and a
// word that it does not know is an error, not a check that never fails.
func TestValidateManifest(t *testing.T) {
	if _, err := manifestSchema(); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{`{"maxLength": 3}`, `{"properties": {"a": {"multipleOf": 2}}}`, `{"items": {"not": {}}}`} {
		if err := decodeStrictly([]byte(bad), &node{}); err == nil {
			t.Errorf("%s is read", bad)
		}
	}
	for _, bad := range []string{`{"$ref": "#/$defs/None"}`, `{"items": {"$ref": "#/$defs/None"}}`, `{"pattern": "("}`} {
		n := &node{}
		if err := decodeStrictly([]byte(bad), n); err != nil {
			t.Fatal(err)
		}
		if err := n.prepare(n); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
	for raw, says := range map[string]string{
		"":                                    "EOF",
		"null":                                "object",
		"{}":                                  `"version" is missing`,
		`{"version":1}{}`:                     "follows",
		"{\"a\": \"\xff\"}":                   "UTF-8",
		strings.Repeat(`{"measured":`, 20000): "depth",
	} {
		if err := ValidateManifest([]byte(raw)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.40q: %v, want %q", raw, err, says)
		}
	}
}
