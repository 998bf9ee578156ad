package jinja

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"time"
)

var errTooMuch = errors.New("the template makes more text than a chat has; is it an attack?")

// A scope holds names; those of an outer one are seen, and hidden by setting them.
type scope struct {
	parent *scope
	vars   map[string]any
}

func (s *scope) get(name string) any {
	for ; s != nil; s = s.parent {
		if v, ok := s.vars[name]; ok {
			return v
		}
	}
	return undefined{name}
}

// output is text that is written.
type output struct{ strings.Builder }

type renderer struct {
	ctx   context.Context
	now   time.Time
	out   *output
	steps int
	bytes int
	depth int
}

// step counts work.
func (r *renderer) step(line, n int) error {
	before := r.steps
	if r.steps += n; r.steps > maxSteps {
		return fail(line, "the template takes more than %d steps; is it an attack?", int(maxSteps))
	}
	if before/interruptEvery != r.steps/interruptEvery {
		return context.Cause(r.ctx)
	}
	return nil
}

// made counts text that was made.
func (r *renderer) made(line, n int) error {
	if r.bytes += n; r.bytes > maxBytes {
		return fail(line, "%v", errTooMuch)
	}
	return r.step(line, n/64)
}

func (r *renderer) enter(line int) error {
	if r.depth++; r.depth > maxDepth {
		return fail(line, "calls nest deeper than %d", maxDepth)
	}
	return nil
}

func (r *renderer) write(line int, s string) error {
	r.out.WriteString(s)
	return r.made(line, len(s))
}

// jump says how a body ended.
type jump uint8

const (
	jumpNone jump = iota
	jumpBreak
	jumpContinue
)

// captured runs a body and returns what it writes.
func (r *renderer) captured(body []node, s *scope) (string, error) {
	outer := r.out
	r.out = &output{}
	defer func() { r.out = outer }()
	_, err := r.run(body, s)
	return r.out.String(), err
}

func (r *renderer) run(body []node, s *scope) (jump, error) {
	for _, n := range body {
		j, err := r.node(n, s)
		if err != nil || j != jumpNone {
			return j, err
		}
	}
	return jumpNone, nil
}

func (r *renderer) node(n node, s *scope) (jump, error) {
	switch n := n.(type) {
	case textNode:
		return jumpNone, r.write(0, string(n))
	case jumpNode:
		if n {
			return jumpBreak, nil
		}
		return jumpContinue, nil
	case outNode:
		v, err := r.eval(n.x, s)
		if err != nil {
			return 0, err
		}
		t, err := r.str(n.line, v)
		if err != nil {
			return 0, err
		}
		return jumpNone, r.write(n.line, t)
	case ifNode:
		for i, body := range n.body {
			if i < len(n.conds) {
				v, err := r.eval(n.conds[i], s)
				if err != nil {
					return 0, err
				}
				if !truth(v) {
					continue
				}
			}
			return r.run(body, s)
		}
	case forNode:
		return jumpNone, r.loop(n, s)
	case setNode:
		return jumpNone, r.set(n, s)
	case macroNode:
		s.vars[n.name] = r.macro(n, s)
	case filterNode:
		t, err := r.captured(n.body, &scope{parent: s, vars: map[string]any{}})
		if err != nil {
			return 0, err
		}
		v, err := r.filtered(n.filters, t, s)
		if err != nil {
			return 0, err
		}
		if t, err = r.str(n.line, v); err != nil {
			return 0, err
		}
		return jumpNone, r.write(n.line, t)
	}
	return jumpNone, nil
}

func (r *renderer) filtered(list []filterCall, v any, s *scope) (any, error) {
	for _, f := range list {
		a, err := r.args(f.args, s)
		if err != nil {
			return nil, err
		}
		apply, ok := filters[f.name]
		if !ok { // only where it is reached: templates use filters of other programs in branches for those
			return nil, fail(f.line, "the filter %q is not known here", f.name)
		}
		if v, err = apply(r, f.line, v, a); err != nil {
			return nil, located(f.line, err)
		}
	}
	return v, nil
}

// located adds the line to an error that has none.
func located(line int, err error) error {
	var e *Error
	if err == nil || errors.As(err, &e) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fail(line, "%v", err)
}

func (r *renderer) str(line int, v any) (string, error) {
	if s, ok := v.(string); ok {
		return s, nil
	}
	var b strings.Builder
	if err := text(&b, v, 0); err != nil {
		return "", located(line, err)
	}
	return b.String(), r.made(line, b.Len())
}

// assign gives a value to targets.
func (r *renderer) assign(line int, s *scope, targets []string, v any) error {
	values := []any{v}
	if len(targets) > 1 {
		var err error
		if values, err = r.iterate(line, v); err != nil {
			return err
		}
		if len(values) != len(targets) {
			return fail(line, "%d values for %d names", len(values), len(targets))
		}
	}
	for i, t := range targets {
		name, attr, isAttr := strings.Cut(t, ".")
		if !isAttr {
			s.vars[name] = values[i]
			continue
		}
		ns, ok := s.get(name).(*namespace)
		if !ok {
			return fail(line, "%s is not a namespace; only those have attributes to set", name)
		}
		ns.vars.Set(attr, values[i])
	}
	return nil
}

func (r *renderer) set(n setNode, s *scope) error {
	if n.value != nil {
		v, err := r.eval(n.value, s)
		if err != nil {
			return err
		}
		return r.assign(n.line, s, n.targets, v)
	}
	t, err := r.captured(n.body, &scope{parent: s, vars: map[string]any{}})
	if err != nil {
		return err
	}
	v, err := r.filtered(n.filters, t, s)
	if err != nil {
		return err
	}
	return r.assign(n.line, s, n.targets, v)
}

// iterate lists what a loop runs over.
func (r *renderer) iterate(line int, v any) ([]any, error) {
	var out []any
	switch v := v.(type) {
	case string:
		if err := r.step(line, len(v)); err != nil {
			return nil, err
		}
		for _, c := range v {
			out = append(out, string(c))
		}
		return out, nil
	case *Dict:
		out = v.keys
	case undefined:
	default:
		list, ok := items(v)
		if !ok {
			return nil, fail(line, "%s cannot be gone through", typeName(v))
		}
		out = list
	}
	return out, r.step(line, len(out))
}

// stepsPerTurn is what a turn of a loop costs: as long as so many expressions.
const stepsPerTurn = 10

func (r *renderer) loop(n forNode, s *scope) error {
	over, err := r.eval(n.over, s)
	if err != nil {
		return err
	}
	values, err := r.iterate(n.line, over)
	if err != nil {
		return err
	}
	if n.cond != nil {
		var kept []any
		for _, v := range values {
			in := &scope{parent: s, vars: map[string]any{}}
			if err := r.assign(n.line, in, n.targets, v); err != nil {
				return err
			}
			ok, err := r.eval(n.cond, in)
			if err != nil {
				return err
			}
			if truth(ok) {
				kept = append(kept, v)
			}
		}
		values = kept
	}
	if len(values) == 0 {
		_, err := r.run(n.none, &scope{parent: s, vars: map[string]any{}})
		return err
	}
	if err := r.enter(n.line); err != nil {
		return err
	}
	defer func() { r.depth-- }()
	var changed any = undefined{}
	for i, v := range values {
		if err := r.step(n.line, stepsPerTurn); err != nil {
			return err
		}
		in := &scope{parent: s, vars: map[string]any{"loop": loopVars(values, i, &changed)}}
		if err := r.assign(n.line, in, n.targets, v); err != nil {
			return err
		}
		j, err := r.run(n.body, in)
		if err != nil {
			return err
		}
		if j == jumpBreak {
			break
		}
	}
	return nil
}

// loopVars makes what "loop" is in the i-th turn.
func loopVars(values []any, i int, changed *any) *namespace {
	n := len(values)
	around := func(k int) any {
		if k < 0 || k >= n {
			return undefined{"the neighbour"}
		}
		return values[k]
	}
	return &namespace{NewDict("index", int64(i+1), "index0", int64(i), "revindex", int64(n-i), "revindex0", int64(n-i-1),
		"first", i == 0, "last", i == n-1, "length", int64(n), "previtem", around(i-1), "nextitem", around(i+1),
		"cycle", function(func(_ *renderer, line int, a args) (any, error) {
			if len(a.values) == 0 {
				return nil, fail(line, "cycle needs values")
			}
			return a.values[i%len(a.values)], nil
		}),
		"changed", function(func(_ *renderer, _ int, a args) (any, error) {
			now := any(tuple(a.values))
			if equal(*changed, now) {
				return false, nil
			}
			*changed = now
			return true, nil
		}))}
}

func (r *renderer) macro(n macroNode, outer *scope) function {
	return func(r *renderer, line int, a args) (any, error) {
		if err := r.enter(line); err != nil {
			return nil, err
		}
		defer func() { r.depth-- }()
		s := &scope{parent: outer, vars: map[string]any{}}
		values, err := a.bind(n.name, n.params...)
		if err != nil {
			return nil, located(line, err)
		}
		for i, p := range n.params {
			if !is[absent](values[i]) {
				s.vars[p] = values[i]
			} else if d := i - (len(n.params) - len(n.defaults)); d >= 0 {
				if s.vars[p], err = r.eval(n.defaults[d], s); err != nil {
					return nil, err
				}
			} else {
				s.vars[p] = undefined{p}
			}
		}
		return r.captured(n.body, s)
	}
}

// args are evaluated arguments.
type args struct {
	values []any
	named  map[string]any
}

func (r *renderer) args(a arguments, s *scope) (args, error) {
	var out args
	for _, x := range a.values {
		v, err := r.eval(x, s)
		if err != nil {
			return out, err
		}
		out.values = append(out.values, v)
	}
	for i, x := range a.named {
		v, err := r.eval(x, s)
		if err != nil {
			return out, err
		}
		if out.named == nil {
			out.named = map[string]any{}
		}
		out.named[a.names[i]] = v
	}
	return out, nil
}

func (r *renderer) evalAll(xs []expr, s *scope) ([]any, error) {
	out := make([]any, 0, len(xs))
	for _, x := range xs {
		v, err := r.eval(x, s)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func (r *renderer) eval(x expr, s *scope) (any, error) {
	line := x.at()
	if err := r.step(line, 1); err != nil {
		return nil, err
	}
	v, err := r.value(x, s)
	return v, located(line, err)
}

func (r *renderer) value(x expr, s *scope) (any, error) {
	line := x.at()
	switch x := x.(type) {
	case *literal:
		return x.v, nil
	case *nameExpr:
		return s.get(x.name), nil
	case *listExpr:
		list, err := r.evalAll(x.items, s)
		if x.tuple {
			return tuple(list), err
		}
		return list, err
	case *dictExpr:
		return r.dict(x, s)
	case *unaryExpr:
		return r.unary(x, s)
	case *binaryExpr:
		return r.binary(x, s)
	case *compareExpr:
		return r.compare(x, s)
	case *condExpr:
		c, err := r.eval(x.cond, s)
		switch {
		case err != nil:
			return nil, err
		case truth(c):
			return r.eval(x.x, s)
		case x.other == nil:
			return undefined{"the value of an if without else"}, nil
		}
		return r.eval(x.other, s)
	case *attrExpr:
		v, err := r.eval(x.x, s)
		if err != nil {
			return nil, err
		}
		return attribute(v, x.name)
	case *indexExpr:
		vs, err := r.evalAll([]expr{x.x, x.index}, s)
		if err != nil {
			return nil, err
		}
		return index(vs[0], vs[1])
	case *sliceExpr:
		return r.slice(x, s)
	case *callExpr:
		return r.call(x, s)
	case *filterExpr:
		v, err := r.eval(x.x, s)
		if err != nil {
			return nil, err
		}
		return r.filtered([]filterCall{x.filterCall}, v, s)
	case *testExpr:
		v, err := r.eval(x.x, s)
		if err != nil {
			return nil, err
		}
		a, err := r.args(x.args, s)
		if err != nil {
			return nil, err
		}
		test, known := tests[x.name]
		if !known {
			return nil, fail(line, "the test %q is not known here", x.name)
		}
		ok, err := test(v, a)
		return ok != x.not, err
	}
	return nil, fail(line, "an expression is not known")
}

func (r *renderer) dict(x *dictExpr, s *scope) (any, error) {
	d := &Dict{}
	for i := range x.keys {
		kv, err := r.evalAll([]expr{x.keys[i], x.values[i]}, s)
		if err != nil {
			return nil, err
		}
		if !hashable(kv[0]) {
			return nil, fail(x.at(), "%s cannot be a key", typeName(kv[0]))
		}
		d.Set(key(kv[0]), kv[1])
	}
	return d, nil
}

func (r *renderer) call(x *callExpr, s *scope) (any, error) {
	line := x.at()
	f, err := r.eval(x.f, s)
	if err != nil {
		return nil, err
	}
	a, err := r.args(x.args, s)
	if err != nil {
		return nil, err
	}
	call, ok := f.(function)
	if !ok {
		if u, ok := f.(undefined); ok {
			return nil, fail(line, "%s is undefined and cannot be called", u.name)
		}
		return nil, fail(line, "%s cannot be called", typeName(f))
	}
	return call(r, line, a)
}

func (r *renderer) unary(x *unaryExpr, s *scope) (any, error) {
	v, err := r.eval(x.x, s)
	if err != nil {
		return nil, err
	}
	if x.op == "not" {
		return !truth(v), nil
	}
	i, f, isInt, ok := number(v)
	switch {
	case !ok:
		return nil, fail(x.at(), "%s has no sign", typeName(v))
	case isInt && x.op == "-":
		return -i, nil
	case isInt:
		return i, nil
	case x.op == "-":
		return -f, nil
	}
	return f, nil
}

func (r *renderer) compare(x *compareExpr, s *scope) (any, error) {
	a, err := r.eval(x.x, s)
	if err != nil {
		return nil, err
	}
	for i, op := range x.ops {
		b, err := r.eval(x.ys[i], s)
		if err != nil {
			return nil, err
		}
		var ok bool
		switch op {
		case "==":
			ok = equal(a, b)
		case "!=":
			ok = !equal(a, b)
		case "in":
			ok, err = contains(b, a)
		case "not in":
			ok, err = contains(b, a)
			ok = !ok
		case "<":
			ok, err = less(a, b)
		case ">":
			ok, err = less(b, a)
		case "<=", ">=":
			if op == ">=" {
				ok, err = less(b, a)
			} else {
				ok, err = less(a, b)
			}
			ok = ok || equal(a, b)
		}
		if err != nil || !ok {
			return false, err
		}
		a = b
	}
	return true, nil
}

func (r *renderer) binary(x *binaryExpr, s *scope) (any, error) {
	a, err := r.eval(x.a, s)
	if err != nil {
		return nil, err
	}
	switch x.op {
	case "and":
		if !truth(a) {
			return a, nil
		}
		return r.eval(x.b, s)
	case "or":
		if truth(a) {
			return a, nil
		}
		return r.eval(x.b, s)
	}
	b, err := r.eval(x.b, s)
	if err != nil {
		return nil, err
	}
	line := x.at()
	if x.op == "~" {
		t, err := r.str(line, a)
		if err != nil {
			return nil, err
		}
		u, err := r.str(line, b)
		if err != nil {
			return nil, err
		}
		return t + u, r.made(line, len(t)+len(u))
	}
	if x.op == "+" && (safe(x.a) || safe(x.b)) {
		return nil, fail(line, "text marked as safe is joined with other text, whose HTML Jinja then escapes; that is not done here")
	}
	if v, ok, err := r.sequence(line, x.op, a, b); ok {
		return v, err
	}
	return arithmetic(line, x.op, a, b)
}

// safe says whether an expression ends in the filter of that name.
func safe(x expr) bool {
	f, ok := x.(*filterExpr)
	return ok && f.name == "safe"
}

// sequence joins and repeats strings and lists.
func (r *renderer) sequence(line int, op string, a, b any) (any, bool, error) {
	switch op {
	case "+":
		if t, ok := a.(string); ok {
			if u, ok := b.(string); ok {
				if err := r.made(line, len(t)+len(u)); err != nil {
					return nil, true, err
				}
				return t + u, true, nil
			}
		}
		x, xok := items(a)
		y, yok := items(b)
		if xok && yok {
			err := r.step(line, len(x)+len(y))
			if _, ok := a.(tuple); ok {
				return tuple(slices.Concat(x, y)), true, err
			}
			return slices.Concat(x, y), true, err
		}
	case "*":
		if _, ok := a.(int64); ok {
			a, b = b, a
		}
		n, ok := b.(int64)
		if !ok {
			return nil, false, nil
		}
		n = max(n, 0)
		if t, ok := a.(string); ok {
			if t != "" && n > maxBytes/int64(len(t)) {
				return nil, true, fail(line, "%v", errTooMuch)
			}
			return strings.Repeat(t, int(n)), true, r.made(line, len(t)*int(n))
		}
		if l, ok := a.([]any); ok {
			if len(l) > 0 && n > maxSteps/int64(len(l)) {
				return nil, true, fail(line, "%v", errTooMuch)
			}
			if err := r.step(line, len(l)*int(n)); err != nil {
				return nil, true, err
			}
			return slices.Repeat(l, int(n)), true, nil
		}
	}
	return nil, false, nil
}

func arithmetic(line int, op string, a, b any) (any, error) {
	i, f, ai, aok := number(a)
	j, g, bi, bok := number(b)
	if !aok || !bok {
		for _, v := range []any{a, b} {
			if u, ok := v.(undefined); ok {
				return nil, fail(line, "%s is undefined", u.name)
			}
		}
		return nil, fail(line, "%s cannot be computed of %s and %s", op, typeName(a), typeName(b))
	}
	if ai && bi {
		return integers(line, op, i, j)
	}
	return floats(line, op, f, g)
}

func floats(line int, op string, f, g float64) (any, error) {
	switch op {
	case "+":
		return f + g, nil
	case "-":
		return f - g, nil
	case "*":
		return f * g, nil
	case "**":
		return math.Pow(f, g), nil
	}
	if g == 0 {
		return nil, fail(line, "division by zero")
	}
	switch op {
	case "/":
		return f / g, nil
	case "//":
		return math.Floor(f / g), nil
	}
	m := math.Mod(f, g)
	if m != 0 && (m < 0) != (g < 0) {
		m += g
	}
	return m, nil
}

func integers(line int, op string, i, j int64) (any, error) {
	if j == 0 && strings.ContainsAny(op, "/%") {
		return nil, fail(line, "division by zero")
	}
	f, g := float64(i), float64(j)
	overflow := func() (any, error) { return nil, fail(line, "%d %s %d is out of range", i, op, j) }
	switch op {
	case "+":
		if c := i + j; (c > i) == (j > 0) {
			return c, nil
		}
		return overflow()
	case "-":
		if c := i - j; (c < i) == (j > 0) {
			return c, nil
		}
		return overflow()
	case "*":
		if c := i * j; i == 0 || c/i == j && (i != -1 || j != math.MinInt64) {
			return c, nil
		}
		return overflow()
	case "/":
		return f / g, nil
	case "//", "%":
		if j == -1 {
			if op == "%" {
				return int64(0), nil
			}
			if i == math.MinInt64 {
				return overflow()
			}
			return -i, nil
		}
		q, m := i/j, i%j
		if m != 0 && (m < 0) != (j < 0) {
			q, m = q-1, m+j
		}
		if op == "%" {
			return m, nil
		}
		return q, nil
	}
	if j < 0 {
		return math.Pow(f, g), nil
	}
	out := math.Pow(f, g)
	if math.Abs(out) >= 1<<53 {
		return overflow()
	}
	return int64(out), nil
}

// index is v[i]: items first, then attributes.
func index(v, i any) (any, error) {
	if u, ok := v.(undefined); ok {
		return nil, errUndefined(u)
	}
	if d, ok := v.(*Dict); ok && hashable(i) {
		if x, ok := d.Get(key(i)); ok {
			return x, nil
		}
	}
	if n, ok := i.(int64); ok {
		var list []any
		if s, isString := v.(string); isString {
			r := []rune(s)
			if n < 0 {
				n += int64(len(r))
			}
			if n >= 0 && n < int64(len(r)) {
				return string(r[n]), nil
			}
			return undefined{"an item"}, nil
		}
		if list, ok = items(v); ok {
			if n < 0 {
				n += int64(len(list))
			}
			if n >= 0 && n < int64(len(list)) {
				return list[n], nil
			}
			return undefined{"an item"}, nil
		}
	}
	if name, ok := i.(string); ok {
		if f := method(v, name); f != nil {
			return f, nil
		}
		if ns, ok := v.(*namespace); ok {
			if x, ok := ns.vars.Get(name); ok {
				return x, nil
			}
		}
		return undefined{name}, nil
	}
	return undefined{"an item"}, nil
}

// attribute is v.name: methods first, then items.
func attribute(v any, name string) (any, error) {
	switch v := v.(type) {
	case undefined:
		return nil, errUndefined(v)
	case *namespace:
		if x, ok := v.vars.Get(name); ok {
			return x, nil
		}
		return undefined{name}, nil
	}
	if f := method(v, name); f != nil {
		return f, nil
	}
	if d, ok := v.(*Dict); ok {
		if x, ok := d.Get(name); ok {
			return x, nil
		}
	}
	return undefined{name}, nil
}

func errUndefined(u undefined) error { return errors.New(u.name + " is undefined") }

// slice is v[from:to:step].
func (r *renderer) slice(x *sliceExpr, s *scope) (any, error) {
	line := x.at()
	v, err := r.eval(x.x, s)
	if err != nil {
		return nil, err
	}
	var bounds [3]*int64
	for i, part := range []expr{x.from, x.to, x.step} {
		if part == nil {
			continue
		}
		b, err := r.eval(part, s)
		if err != nil {
			return nil, err
		}
		switch b := b.(type) {
		case nil:
		case int64:
			bounds[i] = &b
		default:
			return nil, fail(line, "a slice has bounds that are integers, not %s", typeName(b))
		}
	}
	runes, isString := []rune(nil), false
	var list []any
	n := 0
	switch v := v.(type) {
	case string:
		runes, isString = []rune(v), true
		n = len(runes)
	case undefined:
		return nil, errUndefined(v)
	default:
		var ok bool
		if list, ok = items(v); !ok {
			return nil, fail(line, "%s has no slices", typeName(v))
		}
		n = len(list)
	}
	at, err := sliced(n, bounds)
	if err != nil {
		return nil, err
	}
	if err := r.step(line, len(at)); err != nil {
		return nil, err
	}
	if isString {
		out := make([]rune, len(at))
		for i, k := range at {
			out[i] = runes[k]
		}
		return string(out), r.made(line, len(out))
	}
	out := make([]any, len(at))
	for i, k := range at {
		out[i] = list[k]
	}
	if _, ok := v.(tuple); ok {
		return tuple(out), nil
	}
	return out, nil
}

// sliced returns the indices that Python's slice of n items has.
func sliced(n int, bounds [3]*int64) ([]int, error) {
	step := int64(1)
	if bounds[2] != nil {
		step = *bounds[2]
	}
	if step == 0 {
		return nil, errors.New("the step of a slice is 0")
	}
	low, high := int64(0), int64(n)
	from, to := low, high
	if step < 0 {
		low, high = -1, int64(n)-1
		from, to = high, low
	}
	clamp := func(b *int64, otherwise int64) int64 {
		if b == nil {
			return otherwise
		}
		i := *b
		if i < 0 {
			i += int64(n)
		}
		return min(max(i, low), high)
	}
	from, to = clamp(bounds[0], from), clamp(bounds[1], to)
	var out []int
	for i := from; (step > 0 && i < to) || (step < 0 && i > to); i += step {
		out = append(out, int(i))
		if step > int64(n) || step < -int64(n) {
			break
		}
	}
	return out, nil
}
