package jinja

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// absent is an argument that was not given.
type absent struct{}

// bind puts arguments into the order of parameters.
func (a args) bind(what string, params ...string) ([]any, error) {
	if len(a.values) > len(params) {
		return nil, fmt.Errorf("%s takes %d arguments, not %d", what, len(params), len(a.values))
	}
	out := make([]any, len(params))
	for i := range out {
		if out[i] = (absent{}); i < len(a.values) {
			out[i] = a.values[i]
		}
	}
	for name, v := range a.named {
		i := slices.Index(params, name)
		if i < 0 || i < len(a.values) {
			return nil, fmt.Errorf("%s has no argument %s here", what, name)
		}
		out[i] = v
	}
	return out, nil
}

// get returns an argument, or what stands for one that was not given.
func get[T any](v any, otherwise T) (T, error) {
	if _, ok := v.(absent); ok {
		return otherwise, nil
	}
	t, ok := v.(T)
	if !ok {
		return t, fmt.Errorf("an argument is %s, expected %s", typeName(v), typeName(any(otherwise)))
	}
	return t, nil
}

var globalFuncs = map[string]function{
	"range":           rangeFunc,
	"namespace":       func(r *renderer, line int, a args) (any, error) { return makeDict(a, true) },
	"dict":            func(r *renderer, line int, a args) (any, error) { return makeDict(a, false) },
	"raise_exception": raise,
	"strftime_now": func(r *renderer, line int, a args) (any, error) {
		p, err := a.bind("strftime_now", "format")
		if err != nil {
			return nil, err
		}
		f, err := get(p[0], "")
		if err != nil {
			return nil, err
		}
		return r.strftime(f)
	},
}

func raise(r *renderer, line int, a args) (any, error) {
	p, err := a.bind("raise_exception", "message")
	if err != nil {
		return nil, err
	}
	s, err := r.str(line, p[0])
	if err != nil {
		return nil, err
	}
	return nil, &Error{Line: line, Text: "the template refuses the messages: " + s, Raised: true}
}

func makeDict(a args, ns bool) (any, error) {
	d := &Dict{}
	if len(a.values) > 1 {
		return nil, errors.New("more than one mapping is given")
	}
	if len(a.values) == 1 {
		from, ok := a.values[0].(*Dict)
		if !ok {
			return nil, fmt.Errorf("%s is not a mapping", typeName(a.values[0]))
		}
		for _, k := range from.keys {
			d.Set(k, from.values[k])
		}
	}
	// Named arguments come without their order; only tojson of such a mapping would show it.
	for _, k := range slices.Sorted(maps.Keys(a.named)) {
		d.Set(k, a.named[k])
	}
	if ns {
		return &namespace{d}, nil
	}
	return d, nil
}

func rangeFunc(r *renderer, line int, a args) (any, error) {
	if len(a.values) == 0 || len(a.values) > 3 || len(a.named) > 0 {
		return nil, fail(line, "range takes one to three numbers")
	}
	n := [3]int64{0, 0, 1}
	for i, v := range a.values {
		x, ok := v.(int64)
		if !ok {
			return nil, fail(line, "range takes integers, not %s", typeName(v))
		}
		n[i] = x
	}
	if len(a.values) == 1 {
		n[0], n[1] = 0, n[0]
	}
	const most = 100000 // the limit of jinja2's sandbox
	if n[2] == 0 {
		return nil, fail(line, "the step of range is 0")
	}
	out := []any{}
	for i := n[0]; n[2] > 0 && i < n[1] || n[2] < 0 && i > n[1]; {
		if len(out) == most {
			return nil, fail(line, "range makes more than %d numbers; is it an attack?", most)
		}
		out = append(out, i)
		next := i + n[2]
		if (next > i) != (n[2] > 0) {
			break
		}
		i = next
	}
	return out, r.step(line, len(out))
}

// strftime knows the parts of a date that templates write.
func (r *renderer) strftime(format string) (string, error) {
	layouts := map[byte]string{'Y': "2006", 'y': "06", 'm': "01", 'd': "02", 'e': "_2", 'b': "Jan", 'B': "January",
		'a': "Mon", 'A': "Monday", 'H': "15", 'I': "03", 'M': "04", 'S': "05", 'p': "PM", 'j': "002", 'F': "2006-01-02",
		'T': "15:04:05", 'Z': "", 'z': ""}
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		if format[i] == '%' {
			b.WriteByte('%')
			continue
		}
		if format[i] == '-' && i+1 < len(format) { // without the leading zero
			i++
			l, ok := layouts[format[i]]
			if !ok {
				return "", fmt.Errorf("strftime_now does not know %%-%c", format[i])
			}
			b.WriteString(strings.TrimLeft(r.now.Format(l), "0 "))
			continue
		}
		l, ok := layouts[format[i]]
		if !ok {
			return "", fmt.Errorf("strftime_now does not know %%%c", format[i])
		}
		b.WriteString(r.now.Format(l))
	}
	return b.String(), nil
}

type filter func(r *renderer, line int, v any, a args) (any, error)

// filters by name. It is filled by init: filters look others up.
var filters map[string]filter

// onString makes a filter of a function on the text of a value.
func onString(f func(string) string) filter {
	return func(r *renderer, line int, v any, a args) (any, error) {
		if _, err := a.bind("the filter"); err != nil {
			return nil, err
		}
		s, err := r.str(line, v)
		if err != nil {
			return nil, err
		}
		s = f(s)
		return s, r.made(line, len(s))
	}
}

func init() {
	filters = map[string]filter{
		"upper":      onString(strings.ToUpper),
		"lower":      onString(strings.ToLower),
		"title":      onString(titleFilter),
		"capitalize": onString(capitalize),
		"string":     onString(func(s string) string { return s }),
		"safe":       func(_ *renderer, _ int, v any, _ args) (any, error) { return v, nil },
		"trim":       trimFilter,
		"tojson":     tojson,
		"length":     length, "count": length,
		"default": defaultFilter, "d": defaultFilter,
		"join": join, "replace": replaceFilter, "indent": indent,
		"first": pick(func(l []any) any { return l[0] }), "last": pick(func(l []any) any { return l[len(l)-1] }),
		"min": extreme(false), "max": extreme(true), "sum": sum,
		"list": func(r *renderer, line int, v any, _ args) (any, error) {
			l, err := r.iterate(line, v)
			return slices.Clone(l), err
		},
		"int": toInt, "float": toFloat, "abs": abs, "round": round,
		"reverse": reverse, "unique": unique, "sort": sortFilter, "items": itemsFilter, "dictsort": dictsort,
		"map":    mapFilter,
		"select": selects(false, true), "reject": selects(false, false),
		"selectattr": selects(true, true), "rejectattr": selects(true, false),
	}
	tests["filter"] = func(v any, _ args) (bool, error) { s, _ := v.(string); return filters[s] != nil, nil }
	tests["test"] = func(v any, _ args) (bool, error) { s, _ := v.(string); return tests[s] != nil, nil }
}

func capitalize(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	if n == 0 {
		return s
	}
	return string(unicode.ToTitle(r)) + strings.ToLower(s[n:])
}

// titleFilter is jinja2's: words are cut at spaces, hyphens and opening brackets.
func titleFilter(s string) string {
	var b strings.Builder
	start := true
	for _, r := range s {
		if start {
			b.WriteRune(unicode.ToUpper(r))
		} else {
			b.WriteRune(unicode.ToLower(r))
		}
		start = unicode.IsSpace(r) || strings.ContainsRune("-([{<", r)
	}
	return b.String()
}

func trimFilter(r *renderer, line int, v any, a args) (any, error) {
	p, err := a.bind("trim", "chars")
	if err != nil {
		return nil, err
	}
	s, err := r.str(line, v)
	if err != nil {
		return nil, err
	}
	return strip(s, p[0], true, true)
}

// isSpace is Python's str.isspace, which str.strip uses: Unicode's spaces and four separators.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f }

func strip(s string, chars any, left, right bool) (string, error) {
	in := isSpace
	switch c := chars.(type) {
	case absent, nil:
	case string:
		in = func(r rune) bool { return strings.ContainsRune(c, r) }
	default:
		return "", fmt.Errorf("strip takes characters, not %s", typeName(chars))
	}
	if left {
		s = strings.TrimLeftFunc(s, in)
	}
	if right {
		s = strings.TrimRightFunc(s, in)
	}
	return s, nil
}

func tojson(r *renderer, line int, v any, a args) (any, error) {
	p, err := a.bind("tojson", "ensure_ascii", "indent", "separators", "sort_keys")
	if err != nil {
		return nil, err
	}
	if len(a.values) > 0 { // the first positional argument is indent in stock Jinja, not here
		p[0] = a.values[0]
	}
	s := jsonStyle{indent: -1, item: ", ", colon: ": "}
	if s.ascii, err = get(p[0], false); err != nil {
		return nil, err
	}
	if _, ok := p[1].(absent); !ok && p[1] != nil {
		n, ok := p[1].(int64)
		if !ok || n < 0 || n > 100 {
			return nil, errors.New("tojson: indent is a number from 0 to 100")
		}
		s.indent, s.item = int(n), ","
	}
	if l, ok := items(p[2]); ok {
		if len(l) != 2 {
			return nil, errors.New("tojson: separators are two")
		}
		var aok, bok bool
		s.item, aok = l[0].(string)
		s.colon, bok = l[1].(string)
		if !aok || !bok {
			return nil, errors.New("tojson: separators are strings")
		}
	}
	if s.sort, err = get(p[3], false); err != nil {
		return nil, err
	}
	var b strings.Builder
	if err := writeJSON(&b, v, s, 0); err != nil {
		return nil, err
	}
	return b.String(), r.made(line, b.Len())
}

func length(r *renderer, line int, v any, _ args) (any, error) {
	switch v := v.(type) {
	case string:
		return int64(utf8.RuneCountInString(v)), nil
	case *Dict:
		return int64(len(v.keys)), nil
	case undefined:
		return int64(0), nil
	}
	l, ok := items(v)
	if !ok {
		return nil, fmt.Errorf("%s has no length", typeName(v))
	}
	return int64(len(l)), nil
}

func defaultFilter(_ *renderer, _ int, v any, a args) (any, error) {
	p, err := a.bind("default", "default_value", "boolean")
	if err != nil {
		return nil, err
	}
	if _, ok := p[0].(absent); ok {
		p[0] = ""
	}
	boolean := false
	if _, ok := p[1].(absent); !ok {
		boolean = truth(p[1])
	}
	if _, ok := v.(undefined); ok || boolean && !truth(v) {
		return p[0], nil
	}
	return v, nil
}

func join(r *renderer, line int, v any, a args) (any, error) {
	p, err := a.bind("join", "d", "attribute")
	if err != nil {
		return nil, err
	}
	sep, err := get(p[0], "")
	if err != nil {
		return nil, err
	}
	list, err := r.iterate(line, v)
	if err != nil {
		return nil, err
	}
	parts := make([]string, len(list))
	for i, x := range list {
		if x, err = byAttribute(x, p[1]); err != nil {
			return nil, err
		}
		if parts[i], err = r.str(line, x); err != nil {
			return nil, err
		}
		if err := r.made(line, len(parts[i])+len(sep)); err != nil {
			return nil, err
		}
	}
	return strings.Join(parts, sep), nil
}

// byAttribute follows a dotted name into a value.
func byAttribute(v, name any) (any, error) {
	switch name := name.(type) {
	case absent, nil:
		return v, nil
	case int64:
		return index(v, name)
	case string:
		for part := range strings.SplitSeq(name, ".") {
			var i any = part
			if n, err := strconv.ParseInt(part, 10, 64); err == nil {
				i = n
			}
			var err error
			if v, err = index(v, i); err != nil {
				return nil, err
			}
		}
		return v, nil
	}
	return nil, fmt.Errorf("an attribute is named by a string, not %s", typeName(name))
}

func replaceFilter(r *renderer, line int, v any, a args) (any, error) {
	s, err := r.str(line, v)
	if err != nil {
		return nil, err
	}
	return replace(r, line, s, a)
}

func replace(r *renderer, line int, s string, a args) (any, error) {
	p, err := a.bind("replace", "old", "new", "count")
	if err != nil {
		return nil, err
	}
	old, err := get(p[0], "")
	if err != nil {
		return nil, err
	}
	by, err := get(p[1], "")
	if err != nil {
		return nil, err
	}
	n, err := get(p[2], int64(-1))
	if err != nil {
		return nil, err
	}
	n = max(n, -1)
	times := int64(strings.Count(s, old))
	if n >= 0 {
		times = min(times, n)
	}
	if err := r.made(line, len(s)); err != nil {
		return nil, err
	}
	if len(by) > 0 && times > maxBytes/int64(len(by)) {
		return nil, errTooMuch
	}
	if err := r.made(line, int(times)*len(by)); err != nil {
		return nil, err
	}
	return strings.Replace(s, old, by, int(min(n, times))), nil
}

func indent(r *renderer, line int, v any, a args) (any, error) {
	p, err := a.bind("indent", "width", "first", "blank")
	if err != nil {
		return nil, err
	}
	s, err := r.str(line, v)
	if err != nil {
		return nil, err
	}
	pad, isText := p[0].(string)
	if !isText {
		n, err := get(p[0], int64(4))
		if err != nil {
			return nil, err
		}
		if n < 0 || n > 1000 {
			return nil, errors.New("indent: the width is out of range")
		}
		pad = strings.Repeat(" ", int(n))
	}
	first, err := get(p[1], false)
	if err != nil {
		return nil, err
	}
	blank, err := get(p[2], false)
	if err != nil {
		return nil, err
	}
	if n := len(s) + (strings.Count(s, "\n")+1)*len(pad); n > maxBytes {
		return nil, errTooMuch
	} else if err := r.made(line, n); err != nil {
		return nil, err
	}
	lines := strings.Split(s, "\n")
	for i := range lines {
		if (i > 0 || first) && (blank || lines[i] != "") {
			lines[i] = pad + lines[i]
		}
	}
	return strings.Join(lines, "\n"), nil
}

func pick(f func([]any) any) filter {
	return func(r *renderer, line int, v any, _ args) (any, error) {
		l, err := r.iterate(line, v)
		if err != nil || len(l) == 0 {
			return undefined{"an item"}, err
		}
		return f(l), nil
	}
}

func extreme(largest bool) filter {
	return func(r *renderer, line int, v any, a args) (any, error) {
		if _, err := a.bind("the filter"); err != nil {
			return nil, err
		}
		l, err := r.iterate(line, v)
		if err != nil || len(l) == 0 {
			return undefined{"an item"}, err
		}
		best := l[0]
		for _, x := range l[1:] {
			p, q := x, best
			if largest {
				p, q = best, x
			}
			ok, err := less(p, q)
			if err != nil {
				return nil, err
			}
			if ok {
				best = x
			}
		}
		return best, nil
	}
}

func sum(r *renderer, line int, v any, a args) (any, error) {
	p, err := a.bind("sum", "attribute", "start")
	if err != nil {
		return nil, err
	}
	l, err := r.iterate(line, v)
	if err != nil {
		return nil, err
	}
	var total any = int64(0)
	if _, ok := p[1].(absent); !ok {
		total = p[1]
	}
	for _, x := range l {
		if x, err = byAttribute(x, p[0]); err != nil {
			return nil, err
		}
		if total, err = arithmetic(line, "+", total, x); err != nil {
			return nil, err
		}
	}
	return total, nil
}

func toInt(_ *renderer, _ int, v any, a args) (any, error) {
	p, err := a.bind("int", "default")
	if err != nil {
		return nil, err
	}
	if i, f, isInt, ok := number(v); ok {
		if isInt {
			return i, nil
		}
		if math.Abs(f) < 1<<63 {
			return int64(f), nil
		}
	}
	if s, ok := v.(string); ok {
		s = strings.TrimFunc(s, isSpace)
		if i, err := strconv.ParseInt(s, 10, 64); err == nil {
			return i, nil
		}
		if f, err := strconv.ParseFloat(s, 64); err == nil && math.Abs(f) < 1<<63 {
			return int64(f), nil
		}
	}
	return get(p[0], int64(0))
}

func toFloat(_ *renderer, _ int, v any, a args) (any, error) {
	p, err := a.bind("float", "default")
	if err != nil {
		return nil, err
	}
	if _, f, _, ok := number(v); ok {
		return f, nil
	}
	if s, ok := v.(string); ok {
		if f, err := strconv.ParseFloat(strings.TrimFunc(s, isSpace), 64); err == nil {
			return f, nil
		}
	}
	return get(p[0], 0.0)
}

func abs(_ *renderer, line int, v any, _ args) (any, error) {
	i, f, isInt, ok := number(v)
	switch {
	case !ok:
		return nil, fmt.Errorf("%s has no absolute value", typeName(v))
	case !isInt:
		return math.Abs(f), nil
	case i < 0:
		return arithmetic(line, "-", int64(0), i)
	}
	return i, nil
}

func round(_ *renderer, _ int, v any, a args) (any, error) {
	p, err := a.bind("round", "precision", "method")
	if err != nil {
		return nil, err
	}
	n, err := get(p[0], int64(0))
	if err != nil {
		return nil, err
	}
	method, err := get(p[1], "common")
	if err != nil {
		return nil, err
	}
	_, f, _, ok := number(v)
	if !ok || n < -300 || n > 300 {
		return nil, fmt.Errorf("%s cannot be rounded", typeName(v))
	}
	scale := math.Pow(10, float64(n))
	switch method {
	case "ceil":
		return math.Ceil(f*scale) / scale, nil
	case "floor":
		return math.Floor(f*scale) / scale, nil
	case "common":
		if n < 0 {
			return math.RoundToEven(f*scale) / scale, nil
		}
		// Python rounds the decimal text of the exact value.
		return strconv.ParseFloat(strconv.FormatFloat(f, 'f', int(n), 64), 64)
	}
	return nil, fmt.Errorf("round does not know the method %q", method)
}

func reverse(r *renderer, line int, v any, _ args) (any, error) {
	if s, ok := v.(string); ok {
		c := []rune(s)
		slices.Reverse(c)
		return string(c), r.made(line, len(s))
	}
	l, err := r.iterate(line, v)
	l = slices.Clone(l)
	slices.Reverse(l)
	return l, err
}

// folded is a value as filters compare it: strings without case, unless asked.
func folded(v any, sensitive bool) any {
	if s, ok := v.(string); ok && !sensitive {
		return strings.ToLower(s)
	}
	return v
}

func unique(r *renderer, line int, v any, a args) (any, error) {
	p, err := a.bind("unique", "case_sensitive", "attribute")
	if err != nil {
		return nil, err
	}
	sensitive, err := get(p[0], false)
	if err != nil {
		return nil, err
	}
	l, err := r.iterate(line, v)
	if err != nil {
		return nil, err
	}
	seen, out := map[any]bool{}, []any{}
	for _, x := range l {
		k, err := byAttribute(x, p[1])
		if err != nil {
			return nil, err
		}
		if !hashable(k) {
			return nil, fmt.Errorf("unique cannot compare %s", typeName(k))
		}
		if k = key(folded(k, sensitive)); !seen[k] {
			seen[k] = true
			out = append(out, x)
		}
	}
	return out, nil
}

// sorted sorts values by a key, equal ones in their order.
func sorted(l []any, by func(any) (any, error), descending bool) ([]any, error) {
	type item struct{ k, v any }
	all := make([]item, len(l))
	for i, v := range l {
		k, err := by(v)
		if err != nil {
			return nil, err
		}
		all[i] = item{k, v}
	}
	var failed error
	sort.SliceStable(all, func(i, j int) bool {
		if descending {
			i, j = j, i
		}
		ok, err := less(all[i].k, all[j].k)
		if err != nil {
			failed = err
		}
		return ok
	})
	out := make([]any, len(l))
	for i := range all {
		out[i] = all[i].v
	}
	return out, failed
}

func sortFilter(r *renderer, line int, v any, a args) (any, error) {
	p, err := a.bind("sort", "reverse", "case_sensitive", "attribute")
	if err != nil {
		return nil, err
	}
	descending, err := get(p[0], false)
	if err != nil {
		return nil, err
	}
	sensitive, err := get(p[1], false)
	if err != nil {
		return nil, err
	}
	l, err := r.iterate(line, v)
	if err != nil {
		return nil, err
	}
	return sorted(l, func(x any) (any, error) {
		k, err := byAttribute(x, p[2])
		return folded(k, sensitive), err
	}, descending)
}

func pairsOf(d *Dict) []any {
	out := make([]any, len(d.keys))
	for i, k := range d.keys {
		out[i] = tuple{k, d.values[k]}
	}
	return out
}

func itemsFilter(r *renderer, line int, v any, _ args) (any, error) {
	switch v := v.(type) {
	case undefined:
		return []any{}, nil
	case *Dict:
		return pairsOf(v), r.step(line, len(v.keys))
	}
	return nil, fmt.Errorf("%s is not a mapping", typeName(v))
}

func dictsort(r *renderer, line int, v any, a args) (any, error) {
	p, err := a.bind("dictsort", "case_sensitive", "by", "reverse")
	if err != nil {
		return nil, err
	}
	sensitive, err := get(p[0], false)
	if err != nil {
		return nil, err
	}
	by, err := get(p[1], "key")
	if err != nil {
		return nil, err
	}
	descending, err := get(p[2], false)
	if err != nil {
		return nil, err
	}
	d, ok := v.(*Dict)
	if !ok {
		return nil, fmt.Errorf("%s is not a mapping", typeName(v))
	}
	at := slices.Index([]string{"key", "value"}, by)
	if at < 0 {
		return nil, errors.New("dictsort sorts by key or by value")
	}
	if err := r.step(line, len(d.keys)); err != nil {
		return nil, err
	}
	return sorted(pairsOf(d), func(x any) (any, error) { return folded(x.(tuple)[at], sensitive), nil }, descending)
}

// sequenceOf is iterate for the filters that give nothing for what is nothing, none too.
func sequenceOf(r *renderer, line int, v any) ([]any, error) {
	if !truth(v) {
		return nil, nil
	}
	return r.iterate(line, v)
}

func mapFilter(r *renderer, line int, v any, a args) (any, error) {
	l, err := sequenceOf(r, line, v)
	if err != nil {
		return nil, err
	}
	out := make([]any, len(l))
	attr, byName := a.named["attribute"]
	name := ""
	if !byName {
		if len(a.values) == 0 {
			return nil, errors.New("map needs a filter or an attribute")
		}
		name, _ = a.values[0].(string)
		if filters[name] == nil {
			return nil, fmt.Errorf("the filter %q is not known here", name)
		}
		a.values = a.values[1:]
	}
	for i, x := range l {
		if err := r.step(line, 1); err != nil {
			return nil, err
		}
		if !byName {
			out[i], err = filters[name](r, line, x, a)
		} else if out[i], err = byAttribute(x, attr); err == nil {
			if _, missing := out[i].(undefined); missing {
				if d, ok := a.named["default"]; ok {
					out[i] = d
				}
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func selects(attr, keep bool) filter {
	return func(r *renderer, line int, v any, a args) (any, error) {
		l, err := sequenceOf(r, line, v)
		if err != nil {
			return nil, err
		}
		var by any = absent{}
		if attr {
			if len(a.values) == 0 {
				return nil, errors.New("an attribute to select by is missing")
			}
			by, a.values = a.values[0], a.values[1:]
		}
		test := func(v any, _ args) (bool, error) { return truth(v), nil }
		if len(a.values) > 0 {
			name, _ := a.values[0].(string)
			if test = tests[name]; test == nil {
				return nil, fmt.Errorf("the test %q is not known here", name)
			}
			a.values = a.values[1:]
		}
		out := []any{}
		for _, x := range l {
			if err := r.step(line, 1); err != nil {
				return nil, err
			}
			y, err := byAttribute(x, by)
			if err != nil {
				return nil, err
			}
			ok, err := test(y, a)
			if err != nil {
				return nil, err
			}
			if ok == keep {
				out = append(out, x)
			}
		}
		return out, nil
	}
}

// compareTest makes a test with one argument.
func compareTest(f func(a, b any) (bool, error)) func(any, args) (bool, error) {
	return func(v any, a args) (bool, error) {
		p, err := a.bind("the test", "other")
		if err != nil {
			return false, err
		}
		return f(v, p[0])
	}
}

var (
	testEqual   = compareTest(func(a, b any) (bool, error) { return equal(a, b), nil })
	testUnequal = compareTest(func(a, b any) (bool, error) { return !equal(a, b), nil })
	testLess    = compareTest(less)
	testGreater = compareTest(func(a, b any) (bool, error) { return less(b, a) })
	testMost    = compareTest(func(a, b any) (bool, error) { ok, err := less(a, b); return ok || equal(a, b), err })
	testLeast   = compareTest(func(a, b any) (bool, error) { ok, err := less(b, a); return ok || equal(a, b), err })
)

// isType makes a test of a value's type.
func isType(f func(v any) bool) func(any, args) (bool, error) {
	return func(v any, _ args) (bool, error) { return f(v), nil }
}

func is[T any](v any) bool { _, ok := v.(T); return ok }

var tests = map[string]func(v any, a args) (bool, error){
	"defined":   isType(func(v any) bool { return !is[undefined](v) }),
	"undefined": isType(is[undefined]),
	"none":      isType(func(v any) bool { return v == nil }),
	"string":    isType(is[string]),
	"boolean":   isType(is[bool]),
	"integer":   isType(is[int64]),
	"float":     isType(is[float64]),
	"number":    isType(func(v any) bool { _, _, _, ok := number(v); return ok }),
	"mapping":   isType(is[*Dict]),
	"callable":  isType(is[function]),
	"true":      isType(func(v any) bool { return v == true }),
	"false":     isType(func(v any) bool { return v == false }),
	"iterable":  isType(sequenceLike), "sequence": isType(sequenceLike),
	"odd": parity(1), "even": parity(0),
	"divisibleby": compareTest(func(a, b any) (bool, error) {
		m, err := arithmetic(0, "%", a, b)
		return err == nil && !truth(m), err
	}),
	"eq": testEqual, "equalto": testEqual, "ne": testUnequal, "sameas": testEqual,
	"lt": testLess, "lessthan": testLess, "gt": testGreater, "greaterthan": testGreater,
	"le": testMost, "ge": testLeast,
	"in":    compareTest(func(a, b any) (bool, error) { return contains(b, a) }),
	"lower": isType(func(v any) bool { s, ok := v.(string); return ok && s == strings.ToLower(s) }),
	"upper": isType(func(v any) bool { s, ok := v.(string); return ok && s == strings.ToUpper(s) }),
}

func sequenceLike(v any) bool {
	_, ok := items(v)
	return ok || is[string](v) || is[*Dict](v) || is[undefined](v)
}

func parity(rest int64) func(any, args) (bool, error) {
	return func(v any, _ args) (bool, error) {
		m, err := arithmetic(0, "%", v, int64(2))
		return err == nil && equal(m, rest), err
	}
}

// stringMethods of Python that templates call.
// It is filled by init: join follows attributes, which may be methods.
var stringMethods map[string]func(r *renderer, line int, s string, a args) (any, error)

func init() {
	stringMethods = map[string]func(r *renderer, line int, s string, a args) (any, error){
		"strip":      stripMethod(true, true),
		"lstrip":     stripMethod(true, false),
		"rstrip":     stripMethod(false, true),
		"upper":      plainMethod(strings.ToUpper),
		"lower":      plainMethod(strings.ToLower),
		"title":      plainMethod(titleMethod),
		"capitalize": plainMethod(capitalize),
		"replace":    replace,
		"split":      splitMethod(false),
		"rsplit":     splitMethod(true),
		"format":     formatMethod,
		"splitlines": func(r *renderer, line int, s string, _ args) (any, error) {
			return splitLines(s), r.step(line, len(s))
		},
		"join": func(r *renderer, line int, s string, a args) (any, error) {
			p, err := a.bind("join", "iterable")
			if err != nil {
				return nil, err
			}
			return join(r, line, p[0], args{values: []any{s}})
		},
		"startswith": affixMethod(strings.HasPrefix),
		"endswith":   affixMethod(strings.HasSuffix),
		"removeprefix": func(_ *renderer, _ int, s string, a args) (any, error) {
			t, err := oneString(a)
			return strings.TrimPrefix(s, t), err
		},
		"removesuffix": func(_ *renderer, _ int, s string, a args) (any, error) {
			t, err := oneString(a)
			return strings.TrimSuffix(s, t), err
		},
		"find": func(_ *renderer, _ int, s string, a args) (any, error) {
			t, err := oneString(a)
			i := strings.Index(s, t)
			if i >= 0 {
				i = utf8.RuneCountInString(s[:i])
			}
			return int64(i), err
		},
		"count": func(_ *renderer, _ int, s string, a args) (any, error) {
			t, err := oneString(a)
			return int64(strings.Count(s, t)), err
		},
		"isdigit": everyRune(unicode.IsDigit),
		"isalpha": everyRune(unicode.IsLetter),
		"isspace": everyRune(isSpace),
		"isupper": func(_ *renderer, _ int, s string, _ args) (any, error) {
			return s == strings.ToUpper(s) && s != strings.ToLower(s), nil
		},
		"islower": func(_ *renderer, _ int, s string, _ args) (any, error) {
			return s == strings.ToLower(s) && s != strings.ToUpper(s), nil
		},
	}
}

// formatMethod is Python's str.format with fields {}, {0} and {name}, without conversions and formats.
func formatMethod(r *renderer, line int, s string, a args) (any, error) {
	var b strings.Builder
	next := 0
	for s != "" {
		i := strings.IndexAny(s, "{}")
		if i < 0 {
			b.WriteString(s)
			break
		}
		b.WriteString(s[:i])
		if strings.HasPrefix(s[i:], "{{") || strings.HasPrefix(s[i:], "}}") {
			b.WriteByte(s[i])
			s = s[i+2:]
			continue
		}
		field, rest, ok := strings.Cut(s[i+1:], "}")
		if s[i] == '}' || !ok {
			return nil, errors.New("format: a bracket stands alone")
		}
		v, ok := a.named[field]
		if !ok {
			n, err := next, error(nil)
			if field == "" {
				next++
			} else if n, err = strconv.Atoi(field); err != nil {
				return nil, fmt.Errorf("format: the field %q is not known here", field)
			}
			if n < 0 || n >= len(a.values) {
				return nil, fmt.Errorf("format: there is no argument %d", n)
			}
			v = a.values[n]
		}
		t, err := r.str(line, v)
		if err != nil {
			return nil, err
		}
		b.WriteString(t)
		if err := r.made(line, len(t)); err != nil {
			return nil, err
		}
		s = rest
	}
	return b.String(), r.made(line, b.Len())
}

func everyRune(f func(rune) bool) func(*renderer, int, string, args) (any, error) {
	return func(_ *renderer, _ int, s string, _ args) (any, error) {
		return s != "" && strings.IndexFunc(s, func(r rune) bool { return !f(r) }) < 0, nil
	}
}

// titleMethod is Python's str.title: a letter after anything else is upper case.
func titleMethod(s string) string {
	var b strings.Builder
	letter := false
	for _, r := range s {
		if letter {
			b.WriteRune(unicode.ToLower(r))
		} else {
			b.WriteRune(unicode.ToTitle(r))
		}
		letter = unicode.IsLetter(r)
	}
	return b.String()
}

func oneString(a args) (string, error) {
	p, err := a.bind("the method", "text")
	if err != nil {
		return "", err
	}
	s, ok := p[0].(string)
	if !ok {
		return "", fmt.Errorf("the method takes a string, not %s", typeName(p[0]))
	}
	return s, nil
}

func plainMethod(f func(string) string) func(*renderer, int, string, args) (any, error) {
	return func(r *renderer, line int, s string, a args) (any, error) {
		if _, err := a.bind("the method"); err != nil {
			return nil, err
		}
		s = f(s)
		return s, r.made(line, len(s))
	}
}

func stripMethod(left, right bool) func(*renderer, int, string, args) (any, error) {
	return func(_ *renderer, _ int, s string, a args) (any, error) {
		p, err := a.bind("strip", "chars")
		if err != nil {
			return nil, err
		}
		return strip(s, p[0], left, right)
	}
}

func affixMethod(f func(s, affix string) bool) func(*renderer, int, string, args) (any, error) {
	return func(_ *renderer, _ int, s string, a args) (any, error) {
		if len(a.values) == 1 {
			if t, ok := a.values[0].(tuple); ok {
				for _, x := range t {
					if y, ok := x.(string); ok && f(s, y) {
						return true, nil
					}
				}
				return false, nil
			}
		}
		t, err := oneString(a)
		return f(s, t), err
	}
}

func splitLines(s string) []any {
	out := []any{}
	s = strings.ReplaceAll(s, "\r\n", "\n")
	for s != "" {
		i := strings.IndexAny(s, "\n\r\v\f\x1c\x1d\x1e\u0085\u2028\u2029")
		if i < 0 {
			return append(out, s)
		}
		_, n := utf8.DecodeRuneInString(s[i:])
		out = append(out, s[:i])
		s = s[i+n:]
	}
	return out
}

func splitMethod(fromRight bool) func(*renderer, int, string, args) (any, error) {
	return func(r *renderer, line int, s string, a args) (any, error) {
		p, err := a.bind("split", "sep", "maxsplit")
		if err != nil {
			return nil, err
		}
		most, err := get(p[1], int64(-1))
		if err != nil {
			return nil, err
		}
		if err := r.made(line, len(s)); err != nil {
			return nil, err
		}
		if err := r.step(line, len(s)); err != nil {
			return nil, err
		}
		var parts []string
		if sep, ok := p[0].(string); ok {
			if sep == "" {
				return nil, errors.New("split: the separator is empty")
			}
			parts = splitAt(s, sep, most, fromRight)
		} else if p[0] == nil || is[absent](p[0]) {
			parts = splitSpaces(s, most, fromRight)
		} else {
			return nil, fmt.Errorf("split takes a string, not %s", typeName(p[0]))
		}
		out := make([]any, len(parts))
		for i, x := range parts {
			out[i] = x
		}
		return out, nil
	}
}

func splitAt(s, sep string, most int64, fromRight bool) []string {
	if most < 0 {
		return strings.Split(s, sep)
	}
	if !fromRight {
		return strings.SplitN(s, sep, int(min(most, math.MaxInt32))+1)
	}
	var out []string
	for ; most > 0; most-- {
		i := strings.LastIndex(s, sep)
		if i < 0 {
			break
		}
		out = append(out, s[i+len(sep):])
		s = s[:i]
	}
	out = append(out, s)
	slices.Reverse(out)
	return out
}

func splitSpaces(s string, most int64, fromRight bool) []string {
	var out []string
	if fromRight {
		s = strings.TrimRightFunc(s, isSpace)
		for s != "" {
			i := strings.LastIndexFunc(s, isSpace)
			if most >= 0 && int64(len(out)) == most {
				i = -1
			}
			if i < 0 {
				out = append(out, s)
				break
			}
			if strings.TrimLeftFunc(s[:i], isSpace) == "" { // what is left is white space
				_, n := utf8.DecodeRuneInString(s[i:])
				out = append(out, s[i+n:])
				break
			}
			_, n := utf8.DecodeRuneInString(s[i:])
			out = append(out, s[i+n:])
			s = strings.TrimRightFunc(s[:i], isSpace)
		}
		slices.Reverse(out)
		return out
	}
	s = strings.TrimLeftFunc(s, isSpace)
	for s != "" {
		i := strings.IndexFunc(s, isSpace)
		if most >= 0 && int64(len(out)) == most {
			i = -1
		}
		if i < 0 {
			return append(out, s)
		}
		out = append(out, s[:i])
		s = strings.TrimLeftFunc(s[i:], isSpace)
	}
	return out
}

// method returns a method of a value, nil where it has none of the name. Those that would change
// the value refuse to.
func method(v any, name string) any {
	var f func(r *renderer, line int, a args) (any, error)
	switch v := v.(type) {
	case string:
		if m := stringMethods[name]; m != nil {
			f = func(r *renderer, line int, a args) (any, error) { return m(r, line, v, a) }
		}
	case *Dict:
		f = dictMethod(v, name)
	default:
		l, ok := items(v)
		if !ok {
			return nil
		}
		switch name {
		case "count", "index":
			f = func(_ *renderer, line int, a args) (any, error) { return countIn(l, name == "index", a) }
		case "append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse":
			f = immutable
		}
	}
	if f == nil {
		return nil
	}
	return function(f)
}

func immutable(_ *renderer, line int, _ args) (any, error) {
	return nil, fail(line, "a template cannot change the values it is given")
}

func countIn(l []any, index bool, a args) (any, error) {
	p, err := a.bind("the method", "value")
	if err != nil {
		return nil, err
	}
	n := int64(0)
	for i, x := range l {
		if equal(x, p[0]) {
			if index {
				return int64(i), nil
			}
			n++
		}
	}
	if index {
		return nil, errors.New("the value is not in the list")
	}
	return n, nil
}

func dictMethod(d *Dict, name string) func(r *renderer, line int, a args) (any, error) {
	switch name {
	case "keys":
		return func(r *renderer, line int, _ args) (any, error) {
			return slices.Clone(d.keys), r.step(line, len(d.keys))
		}
	case "values":
		return func(r *renderer, line int, _ args) (any, error) {
			out := make([]any, len(d.keys))
			for i, k := range d.keys {
				out[i] = d.values[k]
			}
			return out, r.step(line, len(out))
		}
	case "items":
		return func(r *renderer, line int, _ args) (any, error) { return pairsOf(d), r.step(line, len(d.keys)) }
	case "copy":
		return func(r *renderer, line int, _ args) (any, error) { return d, nil } // nothing can change it
	case "get":
		return func(_ *renderer, _ int, a args) (any, error) {
			p, err := a.bind("get", "key", "default")
			if err != nil {
				return nil, err
			}
			if !hashable(p[0]) {
				return nil, fmt.Errorf("%s cannot be a key", typeName(p[0]))
			}
			if v, ok := d.Get(key(p[0])); ok {
				return v, nil
			}
			if is[absent](p[1]) {
				return nil, nil
			}
			return p[1], nil
		}
	case "update", "pop", "popitem", "clear", "setdefault":
		return immutable
	}
	return nil
}
