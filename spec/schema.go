package spec

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

//go:embed manifest.schema.json
var schemaText []byte

// A node is one schema, in the words of JSON Schema that manifest.schema.json uses.
type node struct {
	Ref           string           `json:"$ref"`
	Type          oneOrMany        `json:"type"`
	AnyOf         []*node          `json:"anyOf"`
	Properties    map[string]*node `json:"properties"`
	Required      []string         `json:"required"`
	Additional    *nodeOrBool      `json:"additionalProperties"`
	PropertyNames *node            `json:"propertyNames"`
	Items         *nodeOrBool      `json:"items"`
	PrefixItems   []*node          `json:"prefixItems"`
	MinItems      int              `json:"minItems"`
	Const         any              `json:"const"`
	Enum          []any            `json:"enum"`
	Pattern       string           `json:"pattern"`
	Minimum       *float64         `json:"minimum"`
	Maximum       *float64         `json:"maximum"`
	Above         *float64         `json:"exclusiveMinimum"`
	Defs          map[string]*node `json:"$defs"`

	// Words that check nothing. All others are refused when the schema is read.
	Schema      string `json:"$schema"`
	ID          string `json:"$id"`
	Title       string `json:"title"`
	Description string `json:"description"`

	pattern *regexp.Regexp
}

// oneOrMany is a name or a list of names.
type oneOrMany []string

func (o *oneOrMany) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*o = make([]string, 1)
		return json.Unmarshal(b, &(*o)[0])
	}
	return json.Unmarshal(b, (*[]string)(o))
}

// nodeOrBool is a schema, or true or false: anything or nothing.
type nodeOrBool struct {
	node  *node
	allow bool
}

func (n *nodeOrBool) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, &n.allow) == nil {
		return nil
	}
	n.node = &node{}
	return decodeStrictly(b, n.node)
}

// decodeStrictly refuses unknown words. Numbers of the schema itself (const) stay
// as they are written.
func decodeStrictly(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	d.UseNumber()
	return d.Decode(v)
}

// manifestSchema is the schema that is part of the format, read once.
var manifestSchema = sync.OnceValues(func() (*node, error) {
	root := &node{}
	if err := decodeStrictly(schemaText, root); err != nil {
		return nil, fmt.Errorf("manifest.schema.json: %w", err)
	}
	return root, root.prepare(root)
})

// children calls f for every schema inside n.
func (n *node) children(f func(*node) error) error {
	var all []*node
	for _, m := range []map[string]*node{n.Properties, n.Defs} {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			all = append(all, m[k])
		}
	}
	all = append(append(all, n.AnyOf...), n.PrefixItems...)
	for _, x := range []*nodeOrBool{n.Additional, n.Items} {
		if x != nil && x.node != nil {
			all = append(all, x.node)
		}
	}
	if n.PropertyNames != nil {
		all = append(all, n.PropertyNames)
	}
	for _, x := range all {
		if err := f(x); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) prepare(root *node) (err error) {
	if n.Pattern != "" {
		if n.pattern, err = regexp.Compile(n.Pattern); err != nil {
			return fmt.Errorf("manifest.schema.json: %w", err)
		}
	}
	if n.Ref != "" && root.Defs[strings.TrimPrefix(n.Ref, refPrefix)] == nil {
		return fmt.Errorf("manifest.schema.json: %s leads nowhere", n.Ref)
	}
	return n.children(func(x *node) error { return x.prepare(root) })
}

const refPrefix = "#/$defs/"

// ValidateManifest holds the bytes of a manifest against manifest.schema.json: all
// members that must be there are, no others, in the types and ranges that it
// gives. The error names the member, like layers[3].tokens. It does not check the
// digest (CheckManifest).
func ValidateManifest(raw []byte) error {
	root, err := manifestSchema()
	if err != nil {
		return err
	}
	return validate(root, root, raw)
}

// validate holds raw against n, a schema of root.
func validate(root, n *node, raw []byte) error {
	if !utf8.Valid(raw) { // a decoder would put other characters in place
		return fmt.Errorf("not valid UTF-8")
	}
	var v any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("something follows the object")
	}
	return n.check(root, v, "")
}

// check validates v, which stands at a path of the file.
func (n *node) check(root *node, v any, path string) error {
	bad := func(format string, args ...any) error {
		if path == "" {
			return fmt.Errorf(format, args...)
		}
		return fmt.Errorf("key "+path+": "+format, args...)
	}
	if n.Ref != "" {
		return root.Defs[strings.TrimPrefix(n.Ref, refPrefix)].check(root, v, path)
	}
	if len(n.AnyOf) > 0 {
		var first error
		for _, x := range n.AnyOf {
			err := x.check(root, v, path)
			if err == nil {
				return nil
			}
			if first == nil {
				first = err
			}
		}
		return first
	}
	if len(n.Type) > 0 && !slices.ContainsFunc(n.Type, func(t string) bool { return isType(v, t) }) {
		return bad("%.40s where %s must stand", asJSON(v), strings.Join(n.Type, " or "))
	}
	if n.Const != nil && asJSON(n.Const) != asJSON(v) {
		return bad("%.40s where %s must stand", asJSON(v), asJSON(n.Const))
	}
	if len(n.Enum) > 0 && !slices.ContainsFunc(n.Enum, func(e any) bool { return asJSON(e) == asJSON(v) }) {
		return bad("%.40s is none of the values that version %d knows", asJSON(v), Version)
	}
	return n.checkValue(root, v, path, bad)
}

// checkValue checks what depends on the type of v, which is one that n allows.
func (n *node) checkValue(root *node, v any, path string, bad func(string, ...any) error) error {
	switch v := v.(type) {
	case string:
		if n.pattern != nil && !n.pattern.MatchString(v) {
			return bad("%.80q does not have the form %s", v, n.Pattern)
		}
	case json.Number:
		x, err := v.Float64()
		if err != nil {
			return bad("%.40s is no number that can be used", v)
		}
		if n.Minimum != nil && !(x >= *n.Minimum) || n.Above != nil && !(x > *n.Above) ||
			n.Maximum != nil && !(x <= *n.Maximum) {
			return bad("%.40s is out of range", v)
		}
	case []any:
		return n.checkList(root, v, path, bad)
	case map[string]any:
		return n.checkObject(root, v, path, bad)
	}
	return nil
}

func (n *node) checkList(root *node, v []any, path string, bad func(string, ...any) error) error {
	if len(v) < n.MinItems {
		return bad("%d entries, at least %d are needed", len(v), n.MinItems)
	}
	for i, x := range v {
		at := path + "[" + strconv.Itoa(i) + "]"
		switch {
		case i < len(n.PrefixItems):
			if err := n.PrefixItems[i].check(root, x, at); err != nil {
				return err
			}
		case n.Items == nil || n.Items.allow:
		case n.Items.node == nil:
			return bad("%d entries, at most %d may be there", len(v), len(n.PrefixItems))
		default:
			if err := n.Items.node.check(root, x, at); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *node) checkObject(root *node, v map[string]any, path string, bad func(string, ...any) error) error {
	for _, k := range n.Required {
		if _, ok := v[k]; !ok {
			return bad("member %q is missing", k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(v)) { // always the same error first
		at := strings.TrimPrefix(fmt.Sprintf("%s.%.80s", path, k), ".")
		if n.PropertyNames != nil {
			if err := n.PropertyNames.check(root, k, at); err != nil {
				return err
			}
		}
		member := n.Properties[k]
		if member == nil {
			if n.Additional == nil || n.Additional.allow {
				continue
			}
			if member = n.Additional.node; member == nil {
				return bad("member %.80q is not one of version %d", k, Version)
			}
		}
		if err := member.check(root, v[k], at); err != nil {
			return err
		}
	}
	return nil
}

// isType says whether a decoded value has a type of JSON Schema. An integer may be
// written with a fraction of zeros there; here it may not, as Go's decoder has it.
func isType(v any, name string) bool {
	switch v := v.(type) {
	case nil:
		return name == "null"
	case bool:
		return name == "boolean"
	case string:
		return name == "string"
	case json.Number:
		return name == "number" || name == "integer" && !strings.ContainsAny(string(v), ".eE")
	case []any:
		return name == "array"
	case map[string]any:
		return name == "object"
	}
	return false
}

// asJSON writes a value as JSON.
func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}

// ValidateReport holds JSON against the type of that name in manifest.schema.json: a report's,
// or a record's of the ladder. Unlike readers of reports in general it refuses unknown members.
func ValidateReport(name string, raw []byte) error {
	root, err := manifestSchema()
	if err != nil {
		return err
	}
	def := root.Defs[name]
	if def == nil {
		return fmt.Errorf("the schema has no type %s", name)
	}
	return validate(root, def, raw)
}
