package jinja

import (
	"slices"
	"strconv"
)

// A node is a statement or a piece of text.
type node interface{}

// Statements.
type (
	textNode string
	outNode  struct {
		line int
		x    expr
	}
	ifNode struct {
		line  int
		conds []expr // one for each body but that of else
		body  [][]node
	}
	forNode struct {
		line       int
		targets    []string
		over, cond expr
		body, none []node
	}
	setNode struct {
		line    int
		targets []string // one of them may be "name.attribute"
		value   expr     // nil for a block
		body    []node
		filters []filterCall
	}
	macroNode struct {
		line     int
		name     string
		params   []string
		defaults []expr // of the last params
		body     []node
	}
	filterNode struct {
		line    int
		filters []filterCall
		body    []node
	}
	jumpNode bool // break; false: continue
)

// An expr is an expression.
type expr interface{ at() int }

type pos int

func (p pos) at() int { return int(p) }

// Expressions.
type (
	literal struct {
		pos
		v any
	}
	nameExpr struct {
		pos
		name string
	}
	listExpr struct {
		pos
		items []expr
		tuple bool
	}
	dictExpr struct {
		pos
		keys, values []expr
	}
	unaryExpr struct {
		pos
		op string
		x  expr
	}
	binaryExpr struct {
		pos
		op   string
		a, b expr
	}
	compareExpr struct {
		pos
		x   expr
		ops []string
		ys  []expr
	}
	condExpr struct {
		pos
		x, cond, other expr // other is nil where there is no else
	}
	attrExpr struct {
		pos
		x    expr
		name string
	}
	indexExpr struct {
		pos
		x, index expr
	}
	sliceExpr struct {
		pos
		x, from, to, step expr // nil where left out
	}
	callExpr struct {
		pos
		f    expr
		args arguments
	}
	filterExpr struct {
		pos
		x expr
		filterCall
	}
	testExpr struct {
		pos
		x    expr
		name string
		not  bool
		args arguments
	}
)

type filterCall struct {
	line int
	name string
	args arguments
}

type arguments struct {
	values []expr
	names  []string
	named  []expr
}

type parser struct {
	tokens []token
	i      int
	depth  int
	loops  int
}

func (p *parser) peek() token { return p.tokens[p.i] }

func (p *parser) next() token {
	t := p.tokens[p.i]
	if t.kind != tokEOF {
		p.i++
	}
	return t
}

func (p *parser) isOp(text string) bool   { t := p.peek(); return t.kind == tokOp && t.text == text }
func (p *parser) isName(text string) bool { t := p.peek(); return t.kind == tokName && t.text == text }

func (p *parser) takeOp(text string) bool {
	if p.isOp(text) {
		p.i++
		return true
	}
	return false
}

func (p *parser) takeName(text string) bool {
	if p.isName(text) {
		p.i++
		return true
	}
	return false
}

func (p *parser) unexpected(want string) error {
	t := p.peek()
	what := t.text
	switch t.kind {
	case tokEOF:
		what = "the end of the template"
	case tokEnd:
		what = "%}"
	case tokClose:
		what = "}}"
	}
	return fail(t.line, "expected %s, found %s", want, what)
}

func (p *parser) needOp(text string) error {
	if !p.takeOp(text) {
		return p.unexpected(text)
	}
	return nil
}

func (p *parser) needEnd() error {
	if p.peek().kind != tokEnd {
		return p.unexpected("%}")
	}
	p.i++
	return nil
}

func (p *parser) name() (string, error) {
	if p.peek().kind != tokName {
		return "", p.unexpected("a name")
	}
	return p.next().text, nil
}

// enter counts nesting; leave undoes it.
func (p *parser) enter() error {
	if p.depth++; p.depth > maxDepth {
		return fail(p.peek().line, "it nests deeper than %d", maxDepth)
	}
	return nil
}
func (p *parser) leave() { p.depth-- }

// body reads statements up to a block that begins with one of the names, whose name is taken and
// returned, or to the end of the template where none are given.
func (p *parser) body(ends ...string) ([]node, string, error) {
	if err := p.enter(); err != nil {
		return nil, "", err
	}
	defer p.leave()
	var out []node
	for {
		t := p.next()
		switch t.kind {
		case tokEOF:
			if len(ends) > 0 {
				return nil, "", p.unexpected(ends[len(ends)-1])
			}
			return out, "", nil
		case tokText:
			out = append(out, textNode(t.text))
		case tokOpen:
			x, err := p.tuple()
			if err != nil {
				return nil, "", err
			}
			if p.peek().kind != tokClose {
				return nil, "", p.unexpected("}}")
			}
			p.i++
			out = append(out, outNode{t.line, x})
		case tokBegin:
			name, err := p.name()
			if err != nil {
				return nil, "", err
			}
			if slices.Contains(ends, name) {
				return out, name, nil
			}
			nodes, err := p.statement(name, t.line)
			if err != nil {
				return nil, "", err
			}
			out = append(out, nodes...)
		}
	}
}

func (p *parser) statement(name string, line int) ([]node, error) {
	switch name {
	case "if":
		n, err := p.ifBlock(line)
		return []node{n}, err
	case "for":
		n, err := p.forBlock(line)
		return []node{n}, err
	case "set":
		n, err := p.set(line)
		return []node{n}, err
	case "macro":
		n, err := p.macro(line)
		return []node{n}, err
	case "filter":
		filters, err := p.filters(true)
		if err == nil {
			err = p.needEnd()
		}
		if err != nil {
			return nil, err
		}
		body, err := p.block("endfilter")
		return []node{filterNode{line, filters, body}}, err
	case "generation": // marks what a model wrote, for training
		if err := p.needEnd(); err != nil {
			return nil, err
		}
		body, err := p.block("endgeneration")
		return []node{filterNode{line: line, body: body}}, err
	case "break", "continue":
		if p.loops == 0 {
			return nil, fail(line, "%s stands outside of a loop", name)
		}
		return []node{jumpNode(name == "break")}, p.needEnd()
	}
	return nil, fail(line, "the block %q is not known here", name)
}

// block reads a body up to end and its closing bracket.
func (p *parser) block(end string) ([]node, error) {
	body, _, err := p.body(end)
	if err != nil {
		return nil, err
	}
	return body, p.needEnd()
}

func (p *parser) ifBlock(line int) (node, error) {
	n := ifNode{line: line}
	for end := "elif"; ; {
		if end == "elif" {
			x, err := p.tuple()
			if err != nil {
				return nil, err
			}
			n.conds = append(n.conds, x)
		}
		if err := p.needEnd(); err != nil {
			return nil, err
		}
		ends := []string{"elif", "else", "endif"}
		if end == "else" {
			ends = ends[2:]
		}
		body, name, err := p.body(ends...)
		if err != nil {
			return nil, err
		}
		n.body = append(n.body, body)
		if end = name; end == "endif" {
			return n, p.needEnd()
		}
	}
}

func (p *parser) forBlock(line int) (node, error) {
	n := forNode{line: line}
	for {
		name, err := p.name()
		if err != nil {
			return nil, err
		}
		n.targets = append(n.targets, name)
		if !p.takeOp(",") {
			break
		}
	}
	if !p.takeName("in") {
		return nil, p.unexpected("in")
	}
	var err error
	if n.over, err = p.or(); err != nil { // an "if" after it is the loop's own
		return nil, err
	}
	if p.takeName("if") {
		if n.cond, err = p.expression(); err != nil {
			return nil, err
		}
	}
	if err := p.needEnd(); err != nil {
		return nil, err
	}
	p.loops++
	body, end, err := p.body("else", "endfor")
	p.loops--
	if err != nil {
		return nil, err
	}
	n.body = body
	if end == "else" {
		if err := p.needEnd(); err != nil {
			return nil, err
		}
		n.none, err = p.block("endfor")
		return n, err
	}
	return n, p.needEnd()
}

func (p *parser) set(line int) (node, error) {
	n := setNode{line: line}
	for {
		name, err := p.name()
		if err != nil {
			return nil, err
		}
		if p.takeOp(".") {
			attr, err := p.name()
			if err != nil {
				return nil, err
			}
			name += "." + attr
		}
		n.targets = append(n.targets, name)
		if !p.takeOp(",") {
			break
		}
	}
	var err error
	if p.takeOp("=") {
		if n.value, err = p.tuple(); err != nil {
			return nil, err
		}
		return n, p.needEnd()
	}
	if len(n.targets) > 1 {
		return nil, p.unexpected("=")
	}
	if n.filters, err = p.filters(false); err != nil {
		return nil, err
	}
	if err := p.needEnd(); err != nil {
		return nil, err
	}
	n.body, err = p.block("endset")
	return n, err
}

func (p *parser) macro(line int) (node, error) {
	n := macroNode{line: line}
	var err error
	if n.name, err = p.name(); err != nil {
		return nil, err
	}
	if err := p.needOp("("); err != nil {
		return nil, err
	}
	for !p.takeOp(")") {
		if len(n.params) > 0 {
			if err := p.needOp(","); err != nil {
				return nil, err
			}
		}
		name, err := p.name()
		if err != nil {
			return nil, err
		}
		n.params = append(n.params, name)
		if p.takeOp("=") {
			x, err := p.expression()
			if err != nil {
				return nil, err
			}
			n.defaults = append(n.defaults, x)
		} else if len(n.defaults) > 0 {
			return nil, fail(line, "parameter %s of macro %s needs a default like those before it", name, n.name)
		}
	}
	if err := p.needEnd(); err != nil {
		return nil, err
	}
	loops := p.loops
	p.loops = 0 // a macro's body is no part of the loop around it
	n.body, err = p.block("endmacro")
	p.loops = loops
	return n, err
}

// filters reads filters that follow each other; first says that one stands here without a bar.
func (p *parser) filters(first bool) (out []filterCall, err error) {
	for first || p.takeOp("|") {
		first = false
		f, err := p.filter()
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

func (p *parser) filter() (filterCall, error) {
	line := p.peek().line
	name, err := p.name()
	if err != nil {
		return filterCall{}, err
	}
	f := filterCall{line: line, name: name}
	if p.takeOp("(") {
		f.args, err = p.arguments()
	}
	return f, err
}

// tuple reads an expression, or several with commas between them.
func (p *parser) tuple() (expr, error) {
	line := pos(p.peek().line)
	x, err := p.expression()
	if err != nil || !p.isOp(",") {
		return x, err
	}
	t := &listExpr{pos: line, items: []expr{x}, tuple: true}
	for p.takeOp(",") {
		if k := p.peek().kind; k == tokEnd || k == tokClose || p.isOp(")") {
			break
		}
		if x, err = p.expression(); err != nil {
			return nil, err
		}
		t.items = append(t.items, x)
	}
	return t, nil
}

func (p *parser) expression() (expr, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	x, err := p.or()
	for err == nil && p.isName("if") {
		c := &condExpr{pos: pos(p.next().line), x: x}
		if c.cond, err = p.or(); err != nil {
			return nil, err
		}
		if p.takeName("else") {
			if c.other, err = p.expression(); err != nil {
				return nil, err
			}
		}
		x = c
	}
	return x, err
}

// binary reads operators of one rank between operands.
func (p *parser) binary(operand func() (expr, error), take func() (op string, ok bool)) (expr, error) {
	x, err := operand()
	for n := 0; err == nil; n++ {
		line := pos(p.peek().line)
		op, ok := take()
		if !ok {
			return x, nil
		}
		if n > 10*maxDepth { // it nests to the left
			return nil, fail(int(line), "more than %d operators in a row", 10*maxDepth)
		}
		b := &binaryExpr{pos: line, op: op, a: x}
		b.b, err = operand()
		x = b
	}
	return nil, err
}

func (p *parser) words(names ...string) func() (string, bool) {
	return func() (string, bool) {
		for _, n := range names {
			if p.takeName(n) {
				return n, true
			}
		}
		return "", false
	}
}

func (p *parser) ops(names ...string) func() (string, bool) {
	return func() (string, bool) {
		for _, n := range names {
			if p.takeOp(n) {
				return n, true
			}
		}
		return "", false
	}
}

func (p *parser) or() (expr, error)  { return p.binary(p.and, p.words("or")) }
func (p *parser) and() (expr, error) { return p.binary(p.not, p.words("and")) }

func (p *parser) not() (expr, error) {
	if !p.isName("not") {
		return p.compare()
	}
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	line := pos(p.next().line)
	x, err := p.not()
	return &unaryExpr{line, "not", x}, err
}

func (p *parser) compare() (expr, error) {
	line := pos(p.peek().line)
	x, err := p.sum()
	if err != nil {
		return nil, err
	}
	c := &compareExpr{pos: line, x: x}
	for {
		op, ok := p.ops("==", "!=", "<=", ">=", "<", ">")()
		switch {
		case ok:
		case p.takeName("in"):
			op = "in"
		case p.isName("not") && p.tokens[p.i+1].kind == tokName && p.tokens[p.i+1].text == "in":
			p.i += 2
			op = "not in"
		case len(c.ops) == 0:
			return x, nil
		default:
			return c, nil
		}
		y, err := p.sum()
		if err != nil {
			return nil, err
		}
		c.ops, c.ys = append(c.ops, op), append(c.ys, y)
	}
}

func (p *parser) sum() (expr, error)     { return p.binary(p.concat, p.ops("+", "-")) }
func (p *parser) concat() (expr, error)  { return p.binary(p.product, p.ops("~")) }
func (p *parser) product() (expr, error) { return p.binary(p.power, p.ops("*", "//", "/", "%")) }
func (p *parser) power() (expr, error) {
	return p.binary(func() (expr, error) { return p.unary(true) }, p.ops("**"))
}

func (p *parser) unary(filters bool) (expr, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	line := pos(p.peek().line)
	var x expr
	var err error
	if op, ok := p.ops("-", "+")(); ok {
		if x, err = p.unary(false); err != nil {
			return nil, err
		}
		x = &unaryExpr{line, op, x}
	} else if x, err = p.primary(); err != nil {
		return nil, err
	}
	if x, err = p.postfix(x); err != nil || !filters {
		return x, err
	}
	for n := 0; err == nil; n++ {
		if n > maxDepth {
			return nil, fail(int(line), "more than %d filters in a row", maxDepth)
		}
		switch line := pos(p.peek().line); {
		case p.takeOp("|"):
			f, err := p.filter()
			if err != nil {
				return nil, err
			}
			x = &filterExpr{line, x, f}
		case p.takeName("is"):
			x, err = p.test(line, x)
		case p.isOp("("):
			x, err = p.postfix(x)
		default:
			return x, nil
		}
	}
	return nil, err
}

func (p *parser) test(line pos, x expr) (expr, error) {
	t := &testExpr{pos: line, x: x, not: p.takeName("not")}
	var err error
	if t.name, err = p.name(); err != nil {
		return nil, err
	}
	switch n := p.peek(); {
	case p.takeOp("("):
		t.args, err = p.arguments()
	case n.kind == tokString || n.kind == tokInt || n.kind == tokFloat,
		n.kind == tokOp && (n.text == "[" || n.text == "{"),
		n.kind == tokName && !slices.Contains([]string{"else", "or", "and", "is", "if", "in", "not"}, n.text):
		var a expr
		if a, err = p.primary(); err == nil {
			a, err = p.postfix(a)
		}
		t.args.values = []expr{a}
	}
	return t, err
}

func (p *parser) primary() (expr, error) {
	t := p.next()
	line := pos(t.line)
	switch t.kind {
	case tokName:
		switch t.text {
		case "true", "True":
			return &literal{line, true}, nil
		case "false", "False":
			return &literal{line, false}, nil
		case "none", "None":
			return &literal{line, nil}, nil
		}
		return &nameExpr{line, t.text}, nil
	case tokString:
		s := t.text
		for p.peek().kind == tokString { // strings that follow each other are one
			s += p.next().text
		}
		return &literal{line, s}, nil
	case tokInt:
		n, err := strconv.ParseInt(t.text, 10, 64)
		if err != nil {
			return nil, fail(t.line, "%s is out of range", t.text)
		}
		return &literal{line, n}, nil
	case tokFloat:
		x, err := strconv.ParseFloat(t.text, 64)
		if err != nil {
			return nil, fail(t.line, "%s is out of range", t.text)
		}
		return &literal{line, x}, nil
	case tokOp:
		switch t.text {
		case "(":
			if p.takeOp(")") {
				return &listExpr{pos: line, tuple: true}, nil
			}
			x, err := p.tuple()
			if err != nil {
				return nil, err
			}
			return x, p.needOp(")")
		case "[":
			l := &listExpr{pos: line}
			err := p.list("]", func() error {
				x, err := p.expression()
				l.items = append(l.items, x)
				return err
			})
			return l, err
		case "{":
			d := &dictExpr{pos: line}
			err := p.list("}", func() error {
				k, err := p.expression()
				if err != nil {
					return err
				}
				if err := p.needOp(":"); err != nil {
					return err
				}
				v, err := p.expression()
				d.keys, d.values = append(d.keys, k), append(d.values, v)
				return err
			})
			return d, err
		}
	}
	if t.kind != tokEOF {
		p.i--
	}
	return nil, p.unexpected("a value")
}

// list reads items with commas between them up to end.
func (p *parser) list(end string, item func() error) error {
	for first := true; !p.takeOp(end); first = false {
		if !first {
			if err := p.needOp(","); err != nil {
				return err
			}
			if p.takeOp(end) {
				return nil
			}
		}
		if err := item(); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) arguments() (a arguments, err error) {
	err = p.list(")", func() error {
		if p.peek().kind == tokName && p.tokens[p.i+1].kind == tokOp && p.tokens[p.i+1].text == "=" {
			a.names = append(a.names, p.next().text)
			p.i++
			x, err := p.expression()
			a.named = append(a.named, x)
			return err
		}
		if len(a.names) > 0 {
			return p.unexpected("a named argument")
		}
		x, err := p.expression()
		a.values = append(a.values, x)
		return err
	})
	return a, err
}

func (p *parser) postfix(x expr) (expr, error) {
	for n := 0; ; n++ {
		if n > maxDepth {
			return nil, fail(p.peek().line, "more than %d parts in a row", maxDepth)
		}
		line := pos(p.peek().line)
		switch {
		case p.takeOp("."):
			t := p.next()
			switch t.kind {
			case tokName:
				x = &attrExpr{line, x, t.text}
			case tokInt:
				i, err := strconv.ParseInt(t.text, 10, 64)
				if err != nil {
					return nil, fail(t.line, "%s is out of range", t.text)
				}
				x = &indexExpr{line, x, &literal{line, i}}
			default:
				p.i--
				return nil, p.unexpected("a name")
			}
		case p.takeOp("["):
			y, err := p.subscript(line, x)
			if err != nil {
				return nil, err
			}
			x = y
		case p.takeOp("("):
			args, err := p.arguments()
			if err != nil {
				return nil, err
			}
			x = &callExpr{line, x, args}
		default:
			return x, nil
		}
	}
}

func (p *parser) subscript(line pos, x expr) (expr, error) {
	parts := [3]expr{}
	colons := 0
	for !p.isOp("]") {
		if p.takeOp(":") {
			if colons++; colons > 2 {
				return nil, fail(int(line), "a slice has three parts at most")
			}
			continue
		}
		y, err := p.expression()
		if err != nil {
			return nil, err
		}
		if parts[colons] != nil {
			return nil, p.unexpected("]")
		}
		parts[colons] = y
	}
	p.i++
	if colons > 0 {
		return &sliceExpr{line, x, parts[0], parts[1], parts[2]}, nil
	}
	if parts[0] == nil {
		return nil, fail(int(line), "an index is missing")
	}
	return &indexExpr{line, x, parts[0]}, nil
}
