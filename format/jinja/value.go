package jinja

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Dict is a mapping that keeps the order of its keys, as Python's does.
type Dict struct {
	keys   []any
	values map[any]any
}

// NewDict makes a mapping of pairs: key, value, key, value.
func NewDict(pairs ...any) *Dict {
	d := &Dict{}
	for i := 0; i+1 < len(pairs); i += 2 {
		d.Set(pairs[i], pairs[i+1])
	}
	return d
}

// Set stores a value. Keys are strings, numbers, booleans or nil.
func (d *Dict) Set(key, value any) {
	if d.values == nil {
		d.values = map[any]any{}
	}
	if _, ok := d.values[key]; !ok {
		d.keys = append(d.keys, key)
	}
	d.values[key] = value
}

// Get returns the value of a key.
func (d *Dict) Get(key any) (any, bool) { v, ok := d.values[key]; return v, ok }

// Keys returns the keys in order.
func (d *Dict) Keys() []any { return d.keys }

// ParseJSON reads one JSON value as Python would: objects keep the order of their keys, integers
// stay integers.
func ParseJSON(data []byte) (any, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("it is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	v, err := decode(dec, 0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more follows the value")
	}
	return v, nil
}

func decode(dec *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("it nests deeper than %d", maxDepth)
	}
	t, err := dec.Token()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	switch t := t.(type) {
	case json.Number:
		if i, err := strconv.ParseInt(t.String(), 10, 64); err == nil {
			return i, nil
		}
		if !strings.ContainsAny(t.String(), ".eE") {
			return nil, fmt.Errorf("the number %s is out of range", t)
		}
		return t.Float64()
	case json.Delim:
		if t == '[' {
			list := []any{}
			for dec.More() {
				v, err := decode(dec, depth+1)
				if err != nil {
					return nil, err
				}
				list = append(list, v)
			}
			_, err = dec.Token()
			return list, err
		}
		d := &Dict{}
		for dec.More() {
			k, err := dec.Token()
			if err != nil {
				return nil, err
			}
			v, err := decode(dec, depth+1)
			if err != nil {
				return nil, err
			}
			d.Set(k.(string), v)
		}
		_, err = dec.Token()
		return d, err
	}
	return t, nil
}

// Values that only templates make.
type (
	// undefined is what a name or key gives that is not there.
	undefined struct{ name string }
	// tuple is a list that is written with round brackets.
	tuple []any
	// namespace is what namespace() makes: the only thing a template may change.
	namespace struct{ vars *Dict }
	// function is what can be called.
	function func(r *renderer, line int, a args) (any, error)
)

// items returns what is in a list or tuple.
func items(v any) ([]any, bool) {
	switch v := v.(type) {
	case []any:
		return v, true
	case tuple:
		return v, true
	}
	return nil, false
}

func typeName(v any) string {
	switch v.(type) {
	case nil:
		return "none"
	case bool:
		return "a boolean"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case string:
		return "a string"
	case []any:
		return "a list"
	case tuple:
		return "a tuple"
	case *Dict:
		return "a mapping"
	case undefined:
		return "undefined"
	case *namespace:
		return "a namespace"
	}
	return "a function"
}

func truth(v any) bool {
	switch v := v.(type) {
	case nil, undefined:
		return false
	case bool:
		return v
	case int64:
		return v != 0
	case float64:
		return v != 0
	case string:
		return v != ""
	case []any:
		return len(v) > 0
	case tuple:
		return len(v) > 0
	case *Dict:
		return len(v.keys) > 0
	}
	return true
}

// number returns a number's value, as an integer where it is one; booleans are numbers.
func number(v any) (i int64, f float64, isInt, ok bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, 1, true, true
		}
		return 0, 0, true, true
	case int64:
		return v, float64(v), true, true
	case float64:
		return 0, v, false, true
	}
	return 0, 0, false, false
}

// maxCompared is how many values one comparison looks at. A list of lists can share its parts, so
// that it is small to keep and endless to compare.
const maxCompared = 1 << 18

// tooMuch ends a comparison that would take too long; Render turns it into an error.
type tooMuch struct{}

func equal(a, b any) bool {
	budget := maxCompared
	return equalWithin(a, b, &budget)
}

func equalWithin(a, b any, budget *int) bool {
	if *budget--; *budget < 0 {
		panic(tooMuch{})
	}
	i, f, ai, aok := number(a)
	j, g, bi, bok := number(b)
	if aok || bok {
		return aok && bok && (ai && bi && i == j || (!ai || !bi) && f == g)
	}
	switch a := a.(type) {
	case nil:
		return b == nil
	case undefined:
		_, ok := b.(undefined)
		return ok
	case string:
		s, ok := b.(string)
		return ok && a == s
	case []any:
		s, ok := b.([]any)
		return ok && equalLists(a, s, budget)
	case tuple:
		s, ok := b.(tuple)
		return ok && equalLists(a, s, budget)
	case *Dict:
		d, ok := b.(*Dict)
		return ok && equalDicts(a, d, budget)
	case *namespace:
		return a == b
	}
	return false
}

func equalDicts(a, b *Dict, budget *int) bool {
	if len(a.keys) != len(b.keys) {
		return false
	}
	for k, v := range a.values {
		if w, ok := b.values[k]; !ok || !equalWithin(v, w, budget) {
			return false
		}
	}
	return true
}

func equalLists(a, b []any, budget *int) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !equalWithin(a[i], b[i], budget) {
			return false
		}
	}
	return true
}

// less orders numbers, strings and lists.
func less(a, b any) (bool, error) {
	i, f, ai, aok := number(a)
	j, g, bi, bok := number(b)
	if aok && bok {
		if ai && bi {
			return i < j, nil
		}
		return f < g, nil
	}
	if s, ok := a.(string); ok {
		if t, ok := b.(string); ok {
			return s < t, nil // the order of UTF-8 is that of code points
		}
	}
	x, xok := items(a)
	y, yok := items(b)
	if xok && yok {
		for k := range min(len(x), len(y)) {
			if !equal(x[k], y[k]) {
				return less(x[k], y[k])
			}
		}
		return len(x) < len(y), nil
	}
	return false, fmt.Errorf("%s and %s have no order", typeName(a), typeName(b))
}

// contains is Python's in.
func contains(in, v any) (bool, error) {
	switch c := in.(type) {
	case string:
		s, ok := v.(string)
		if !ok {
			return false, fmt.Errorf("a string cannot contain %s", typeName(v))
		}
		return strings.Contains(c, s), nil
	case *Dict:
		if !hashable(v) {
			return false, fmt.Errorf("%s cannot be a key", typeName(v))
		}
		_, ok := c.Get(key(v))
		return ok, nil
	case undefined:
		return false, nil
	}
	list, ok := items(in)
	if !ok {
		return false, fmt.Errorf("%s contains nothing", typeName(in))
	}
	for _, x := range list {
		if equal(x, v) {
			return true, nil
		}
	}
	return false, nil
}

func hashable(v any) bool {
	switch v.(type) {
	case nil, bool, int64, float64, string:
		return true
	}
	return false
}

// key makes equal numbers one key.
func key(v any) any {
	i, f, isInt, ok := number(v)
	switch {
	case !ok:
		return v
	case isInt:
		return i
	case f == math.Trunc(f) && math.Abs(f) < 1<<53:
		return int64(f)
	}
	return f
}

// text is Python's str().
func text(b *strings.Builder, v any, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("it nests deeper than %d", maxDepth)
	}
	if b.Len() > maxBytes {
		return errTooMuch
	}
	list := func(open, end string, values []any) error {
		b.WriteString(open)
		for i, x := range values {
			if i > 0 {
				b.WriteString(", ")
			}
			if err := repr(b, x, depth+1); err != nil {
				return err
			}
		}
		b.WriteString(end)
		return nil
	}
	switch v := v.(type) {
	case nil:
		b.WriteString("None")
	case undefined:
	case bool:
		if v {
			b.WriteString("True")
		} else {
			b.WriteString("False")
		}
	case int64:
		b.WriteString(strconv.FormatInt(v, 10))
	case float64:
		b.WriteString(floatText(v))
	case string:
		b.WriteString(v)
	case []any:
		return list("[", "]", v)
	case tuple:
		if len(v) == 1 {
			return list("(", ",)", v)
		}
		return list("(", ")", v)
	case *Dict:
		b.WriteByte('{')
		for i, k := range v.keys {
			if i > 0 {
				b.WriteString(", ")
			}
			if err := repr(b, k, depth+1); err != nil {
				return err
			}
			b.WriteString(": ")
			if err := repr(b, v.values[k], depth+1); err != nil {
				return err
			}
		}
		b.WriteByte('}')
	default:
		return fmt.Errorf("%s cannot be written", typeName(v))
	}
	return nil
}

// floatText is Python's repr of a float.
func floatText(x float64) string {
	switch {
	case math.IsNaN(x):
		return "nan"
	case math.IsInf(x, 0):
		return strings.TrimPrefix(strings.ToLower(fmt.Sprintf("%f", x)), "+")
	}
	format := byte('f')
	if a := math.Abs(x); a != 0 && (a < 1e-4 || a >= 1e16) {
		format = 'e'
	}
	s := strconv.FormatFloat(x, format, -1, 64)
	if format == 'f' && !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// repr is Python's repr().
func repr(b *strings.Builder, v any, depth int) error {
	s, ok := v.(string)
	if !ok {
		return text(b, v, depth)
	}
	quote := byte('\'')
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		quote = '"'
	}
	b.WriteByte(quote)
	for _, r := range s {
		switch {
		case r == rune(quote) || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(b, `\u%04x`, r)
		default:
			fmt.Fprintf(b, `\U%08x`, r)
		}
	}
	b.WriteByte(quote)
	return nil
}

// jsonStyle is how tojson writes.
type jsonStyle struct {
	indent      int // -1 for one line
	item, colon string
	ascii, sort bool
}

func floatJSON(v float64) string {
	switch {
	case math.IsNaN(v):
		return "NaN"
	case math.IsInf(v, 1):
		return "Infinity"
	case math.IsInf(v, -1):
		return "-Infinity"
	}
	return floatText(v)
}

// writeJSON is Python's json.dumps.
func writeJSON(b *strings.Builder, v any, s jsonStyle, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("it nests deeper than %d", maxDepth)
	}
	if b.Len() > maxBytes {
		return errTooMuch
	}
	line := func(depth int) {
		if s.indent >= 0 {
			b.WriteByte('\n')
			b.WriteString(strings.Repeat(" ", s.indent*depth))
		}
	}
	switch v := v.(type) {
	case nil:
		b.WriteString("null")
	case bool:
		b.WriteString(strconv.FormatBool(v))
	case int64:
		b.WriteString(strconv.FormatInt(v, 10))
	case float64:
		b.WriteString(floatJSON(v))
	case string:
		quoteJSON(b, v, s.ascii)
	case *Dict:
		b.WriteByte('{')
		keys := v.keys
		if s.sort {
			var err error
			if keys, err = sorted(keys, func(k any) (any, error) { return k, nil }, false); err != nil {
				return err
			}
		}
		for i, k := range keys {
			if i > 0 {
				b.WriteString(s.item)
			}
			line(depth + 1)
			name, ok := k.(string)
			if !ok {
				var t strings.Builder
				if err := writeJSON(&t, k, s, depth+1); err != nil {
					return err
				}
				name = t.String()
			}
			quoteJSON(b, name, s.ascii)
			b.WriteString(s.colon)
			if err := writeJSON(b, v.values[k], s, depth+1); err != nil {
				return err
			}
		}
		if len(keys) > 0 {
			line(depth)
		}
		b.WriteByte('}')
	default:
		list, ok := items(v)
		if !ok {
			return fmt.Errorf("%s has no JSON", typeName(v))
		}
		b.WriteByte('[')
		for i, x := range list {
			if i > 0 {
				b.WriteString(s.item)
			}
			line(depth + 1)
			if err := writeJSON(b, x, s, depth+1); err != nil {
				return err
			}
		}
		if len(list) > 0 {
			line(depth)
		}
		b.WriteByte(']')
	}
	return nil
}

func quoteJSON(b *strings.Builder, s string, ascii bool) {
	b.WriteByte('"')
	for _, r := range s {
		i := strings.IndexRune("\"\\\n\r\t\b\f", r)
		switch {
		case i >= 0:
			b.WriteByte('\\')
			b.WriteByte(`"\nrtbf`[i])
		case r < 0x20 || ascii && r >= 0x7f && r < 0x10000:
			if r == 0x7f {
				b.WriteByte(0x7f)
				break
			}
			fmt.Fprintf(b, `\u%04x`, r)
		case ascii && r >= 0x10000:
			r -= 0x10000
			fmt.Fprintf(b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
}
