// Package jsonx decodes JSON files that other programs wrote, with the names and
// numbers that those programs see.
//
// Package encoding/json matches names without regard to case, so that a stray
// "ROPE_THETA" overrules "rope_theta", which no reader in Python, Rust or C++
// does. It also merges a name that appears twice, and refuses the literals NaN,
// Infinity and -Infinity, which Python's json module writes and reads. Here:
//
//   - Names match exactly. A name that the target has no field for is passed over.
//   - Of a name that appears twice the last value counts, as in Python.
//   - NaN, Infinity and -Infinity are read over in values that nothing asks for and
//     kept in a json.RawMessage; where a number is asked for they are an error.
//   - Text that is not valid UTF-8 is an error.
//
// Types may implement json.Unmarshaler; their methods should decode with this
// package too.
package jsonx

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// maxDepth bounds how deep values may nest.
const maxDepth = 1000

// An Error says what is wrong with a JSON text, and where.
type Error struct {
	Offset int64  // byte in the text, -1 when not known
	Path   string // the value, such as rope_scaling.factor or layers[3]; "" for the whole text
	Msg    string
	Syntax bool // the text is not JSON; else a value is not of the kind that is asked for
	Err    error
}

func (e *Error) Error() string {
	if e.Path == "" {
		return e.Msg
	}
	return "key " + e.Path + ": " + e.Msg
}

// Unwrap returns the error of a json.Unmarshaler, or nil.
func (e *Error) Unwrap() error { return e.Err }

// Unmarshal decodes the one value that data holds into what v points to. Errors
// are *Error. Members of structs that data does not name keep their values.
func Unmarshal(data []byte, v any) error { return unmarshal(data, v, false) }

// UnmarshalStrict is Unmarshal for files that phaseconv wrote itself: names that
// the target has no field for, names that appear twice, and NaN and infinities are
// errors wherever they stand.
func UnmarshalStrict(data []byte, v any) error { return unmarshal(data, v, true) }

func unmarshal(data []byte, v any, strict bool) error {
	p := reflect.ValueOf(v)
	if p.Kind() != reflect.Pointer || p.IsNil() {
		return &Error{Offset: -1, Msg: fmt.Sprintf("cannot decode into a %T", v)}
	}
	d := &decoder{data: data, strict: strict}
	if bytes.HasPrefix(data, []byte("\xef\xbb\xbf")) {
		return d.syntax("the text begins with a byte order mark; save it without one")
	}
	if !utf8.Valid(data) {
		for d.at < len(data) {
			r, n := utf8.DecodeRune(data[d.at:])
			if r == utf8.RuneError && n < 2 {
				break
			}
			d.at += n
		}
		return d.syntax("not valid UTF-8")
	}
	if err := d.value(p.Elem()); err != nil {
		return err
	}
	if d.space(); d.at < len(data) {
		return d.syntax("something follows the value")
	}
	return nil
}

type decoder struct {
	data   []byte
	at     int
	depth  int
	strict bool
}

func (d *decoder) syntax(format string, args ...any) error {
	return &Error{Offset: int64(d.at), Msg: fmt.Sprintf(format, args...), Syntax: true}
}

// kind returns an error about the value that begins at start.
func (d *decoder) kind(start int, format string, args ...any) error {
	return &Error{Offset: int64(start), Msg: fmt.Sprintf(format, args...)}
}

// under puts a step before the path of an error.
func under(step string, err error) error {
	e, ok := err.(*Error)
	if !ok || e.Syntax {
		return err
	}
	if e.Path != "" && e.Path[0] != '[' {
		step += "."
	}
	e.Path = step + e.Path
	return e
}

func (d *decoder) space() {
	for d.at < len(d.data) {
		switch d.data[d.at] {
		case ' ', '\t', '\r', '\n':
			d.at++
		default:
			return
		}
	}
}

// peek returns the next byte, 0 at the end.
func (d *decoder) peek() byte {
	if d.at < len(d.data) {
		return d.data[d.at]
	}
	return 0
}

// found describes the next byte for a message.
func (d *decoder) found() string {
	if d.at >= len(d.data) {
		return "the text ends"
	}
	r, _ := utf8.DecodeRune(d.data[d.at:])
	return fmt.Sprintf("found %q", r)
}

// words are the literals, the last three of them Python's.
var words = []string{"null", "true", "false", "NaN", "Infinity", "-Infinity"}

// word takes a literal if one comes next.
func (d *decoder) word() (string, bool) {
	rest := d.data[d.at:]
	for _, w := range words {
		if len(rest) >= len(w) && string(rest[:len(w)]) == w {
			d.at += len(w)
			return w, true
		}
	}
	return "", false
}

// value decodes the next value into v, or passes over it if v is the zero Value.
//
//nolint:gocyclo // one case a kind of value, each of a few lines
func (d *decoder) value(v reflect.Value) error {
	d.space()
	start := d.at
	if v.IsValid() && v.Kind() == reflect.Pointer {
		if bytes.HasPrefix(d.data[d.at:], []byte("null")) {
			v.SetZero()
			return d.value(reflect.Value{})
		}
		p := reflect.New(v.Type().Elem())
		if err := d.value(p.Elem()); err != nil {
			return err
		}
		v.Set(p)
		return nil
	}
	if v.IsValid() && v.CanAddr() {
		if u, ok := v.Addr().Interface().(json.Unmarshaler); ok {
			if err := d.value(reflect.Value{}); err != nil {
				return err
			}
			err := u.UnmarshalJSON(d.data[start:d.at])
			if e, ok := err.(*Error); ok {
				return &Error{Offset: int64(start) + max(e.Offset, 0), Path: e.Path, Msg: e.Msg, Err: e.Err}
			}
			if err != nil {
				return &Error{Offset: -1, Msg: err.Error(), Err: err}
			}
			return nil
		}
	}
	switch c := d.peek(); {
	case c == '{':
		return d.object(v)
	case c == '[':
		return d.array(v)
	case c == '"':
		s, err := d.text()
		if err != nil || !v.IsValid() {
			return err
		}
		return d.set(start, v, "a text", reflect.String, s)
	case c >= '0' && c <= '9' || c == '-' && !bytes.HasPrefix(d.data[d.at:], []byte("-I")):
		if err := d.number(); err != nil || !v.IsValid() {
			return err
		}
		return d.setNumber(start, v)
	}
	w, ok := d.word()
	switch {
	case !ok:
		return d.syntax("a value is expected, %s", d.found())
	case w == "true" || w == "false":
		if !v.IsValid() {
			return nil
		}
		return d.set(start, v, w, reflect.Bool, w == "true")
	case w == "null":
		if v.IsValid() && slices.Contains([]reflect.Kind{reflect.Map, reflect.Slice, reflect.Interface}, v.Kind()) {
			v.SetZero()
		}
		return nil // elsewhere it leaves the value alone
	}
	if v.IsValid() || d.strict {
		return d.kind(start, "%s is no number to compute with", w)
	}
	return nil
}

// set stores a text or truth value.
func (d *decoder) set(start int, v reflect.Value, what string, kind reflect.Kind, x any) error {
	switch {
	case v.Kind() == reflect.Interface && v.NumMethod() == 0:
		v.Set(reflect.ValueOf(x))
	case v.Kind() == kind:
		v.Set(reflect.ValueOf(x).Convert(v.Type()))
	default:
		return d.kind(start, "%s is expected, found %s", expected(v.Type()), what)
	}
	return nil
}

// expected describes a type in the words of JSON.
func expected(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a text"
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "an object"
	}
	return "a whole number"
}

// number passes over a number.
func (d *decoder) number() error {
	digits := func() error {
		n := d.at
		for c := d.peek(); c >= '0' && c <= '9'; c = d.peek() {
			d.at++
		}
		if d.at == n {
			return d.syntax("a digit is expected, %s", d.found())
		}
		return nil
	}
	if d.peek() == '-' {
		d.at++
	}
	if d.peek() == '0' {
		d.at++
	} else if err := digits(); err != nil {
		return err
	}
	if d.peek() == '.' {
		d.at++
		if err := digits(); err != nil {
			return err
		}
	}
	if c := d.peek(); c == 'e' || c == 'E' {
		d.at++
		if c := d.peek(); c == '+' || c == '-' {
			d.at++
		}
		return digits()
	}
	return nil
}

func (d *decoder) setNumber(start int, v reflect.Value) error {
	text := string(d.data[start:d.at])
	bad := func() error {
		return d.kind(start, "%s is expected, found %s", expected(v.Type()), clip(text))
	}
	switch v.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			return bad()
		}
		v.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(text, 10, v.Type().Bits())
		if err != nil {
			return bad()
		}
		v.SetUint(n)
	case reflect.Float32, reflect.Float64:
		x, err := strconv.ParseFloat(text, v.Type().Bits())
		if err != nil {
			return d.kind(start, "%s is out of range", clip(text))
		}
		v.SetFloat(x)
	case reflect.Interface:
		x, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return d.kind(start, "%s is out of range", clip(text))
		}
		if v.NumMethod() > 0 {
			return bad()
		}
		v.Set(reflect.ValueOf(x))
	default:
		return bad()
	}
	return nil
}

// text decodes a string.
func (d *decoder) text() (string, error) {
	start := d.at
	plain := true
	for d.at++; ; d.at++ {
		switch c := d.peek(); {
		case d.at >= len(d.data):
			return "", d.syntax("a text does not end")
		case c == '"':
			d.at++
			raw := d.data[start:d.at]
			if plain {
				return string(raw[1 : len(raw)-1]), nil
			}
			var s string
			if err := json.Unmarshal(raw, &s); err != nil {
				d.at = start
				return "", d.syntax("a text has an escape that JSON does not know")
			}
			return s, nil
		case c == '\\':
			plain = false
			d.at++
		case c < ' ':
			return "", d.syntax("a text has the control character %q", c)
		}
	}
}

// enter counts nesting; leave takes it back.
func (d *decoder) enter() error {
	d.at++
	if d.depth++; d.depth > maxDepth {
		return d.syntax("values nest deeper than %d", maxDepth)
	}
	return nil
}

// list walks the members of an object or a list up to its closing byte.
func (d *decoder) list(closing byte, member func() error) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer func() { d.depth-- }()
	for first := true; ; first = false {
		d.space()
		if d.peek() == closing && first {
			break
		}
		if err := member(); err != nil {
			return err
		}
		d.space()
		if c := d.peek(); c == closing {
			break
		} else if c != ',' {
			return d.syntax("a comma or %c is expected, %s", closing, d.found())
		}
		d.at++
	}
	d.at++
	return nil
}

func (d *decoder) array(v reflect.Value) error {
	start := d.at
	var out reflect.Value // the list that grows
	n := 0
	next := func() (reflect.Value, error) { return reflect.Value{}, nil }
	if v.IsValid() {
		switch {
		case v.Kind() == reflect.Slice:
			out = reflect.MakeSlice(v.Type(), 0, 0)
			next = func() (reflect.Value, error) { //nolint:unparam // an array's fails
				out = reflect.Append(out, reflect.Zero(v.Type().Elem()))
				return out.Index(n), nil
			}
		case v.Kind() == reflect.Array:
			v.SetZero()
			next = func() (reflect.Value, error) {
				if n >= v.Len() {
					return reflect.Value{}, d.kind(start, "a list of %d is expected, found more", v.Len())
				}
				return v.Index(n), nil
			}
		case v.Kind() == reflect.Interface && v.NumMethod() == 0:
			x := []any{}
			list := reflect.ValueOf(&x).Elem()
			if err := d.value(list); err != nil {
				return err
			}
			v.Set(list)
			return nil
		default:
			return d.kind(start, "%s is expected, found a list", expected(v.Type()))
		}
	}
	err := d.list(']', func() error {
		to, err := next()
		if err != nil {
			return err
		}
		if err := d.value(to); err != nil {
			return under("["+strconv.Itoa(n)+"]", err)
		}
		n++
		return nil
	})
	if err != nil || !v.IsValid() {
		return err
	}
	if v.Kind() == reflect.Slice {
		v.Set(out)
	} else if n < v.Len() {
		return d.kind(start, "a list of %d is expected, found %d", v.Len(), n)
	}
	return nil
}

// key takes the name of a member and the colon after it.
func (d *decoder) key() (string, error) {
	if d.peek() != '"' {
		return "", d.syntax("a name is expected, %s", d.found())
	}
	name, err := d.text()
	if err != nil {
		return "", err
	}
	if d.space(); d.peek() != ':' {
		return "", d.syntax("a colon is expected after %q, %s", clip(name), d.found())
	}
	d.at++
	return name, nil
}

func (d *decoder) object(v reflect.Value) error {
	start := d.at
	if !v.IsValid() {
		return d.list('}', func() error {
			if _, err := d.key(); err != nil {
				return err
			}
			return d.value(reflect.Value{})
		})
	}
	switch {
	case v.Kind() == reflect.Struct:
		return d.members(v)
	case v.Kind() == reflect.Map && v.Type().Key().Kind() == reflect.String:
		return d.entries(v)
	case v.Kind() == reflect.Interface && v.NumMethod() == 0:
		x := map[string]any{}
		m := reflect.ValueOf(&x).Elem()
		if err := d.entries(m); err != nil {
			return err
		}
		v.Set(m)
		return nil
	}
	return d.kind(start, "%s is expected, found an object", expected(v.Type()))
}

// entries decodes an object into a new map.
func (d *decoder) entries(v reflect.Value) error {
	t := v.Type()
	out := reflect.MakeMap(t)
	err := d.list('}', func() error {
		start := d.at
		name, err := d.key()
		if err != nil {
			return err
		}
		k := reflect.ValueOf(name).Convert(t.Key())
		if d.strict && out.MapIndex(k).IsValid() {
			return under(clip(name), d.kind(start, "the name appears twice"))
		}
		x := reflect.New(t.Elem()).Elem()
		if err := d.value(x); err != nil {
			return under(clip(name), err)
		}
		out.SetMapIndex(k, x)
		return nil
	})
	if err == nil {
		v.Set(out)
	}
	return err
}

// members decodes an object into the fields of a struct.
func (d *decoder) members(v reflect.Value) error {
	f, err := fieldsOf(v.Type())
	if err != nil {
		return err
	}
	var seen map[string]bool
	return d.list('}', func() error {
		start := d.at
		name, err := d.key()
		if err != nil {
			return err
		}
		at, ok := f[name]
		if !ok {
			if d.strict {
				return under(clip(name), d.kind(start, "the name is not known"))
			}
			return d.value(reflect.Value{})
		}
		to := v.FieldByIndex(at)
		if seen[name] {
			if d.strict {
				return under(name, d.kind(start, "the name appears twice"))
			}
			to.SetZero() // nothing of the first value stays
		} else if seen == nil {
			seen = map[string]bool{}
		}
		seen[name] = true
		if err := d.value(to); err != nil {
			return under(name, err)
		}
		return nil
	})
}

var fieldCache sync.Map // reflect.Type -> map[string][]int

// fieldsOf returns the index of each named field. Every exported field must have a
// name in its tag, because its Go name is in no file.
func fieldsOf(t reflect.Type) (map[string][]int, error) {
	if f, ok := fieldCache.Load(t); ok {
		return f.(map[string][]int), nil
	}
	out := map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		if !f.IsExported() || f.Anonymous {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			return nil, &Error{Offset: -1, Msg: fmt.Sprintf("field %s of %s has no name in a json tag", f.Name, t)}
		}
		if name != "-" {
			out[name] = f.Index
		}
	}
	fieldCache.Store(t, out)
	return out, nil
}

func clip(s string) string {
	if len(s) > 60 {
		return strings.ToValidUTF8(s[:60], "") + "..."
	}
	return s
}
