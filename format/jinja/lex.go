package jinja

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// kind of a token.
type kind uint8

const (
	tokText  kind = iota // literal text of the template
	tokOpen              // {{
	tokClose             // }}
	tokBegin             // {%
	tokEnd               // %}
	tokName
	tokString
	tokInt
	tokFloat
	tokOp
	tokEOF
)

type token struct {
	kind kind
	text string
	line int
}

// operators, longest first.
var operators = []string{"//", "**", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<", ">", "=", "(", ")",
	"[", "]", "{", "}", ",", ":", ".", "|"}

type lexer struct {
	src    string
	at     int
	line   int
	tokens []token
	// lineStart: the text so far of the present line is white space of the template itself, so a
	// block that begins here begins its line.
	lineStart bool
}

// lex cuts a template into tokens, with white space around tags removed as trim_blocks and
// lstrip_blocks ask for.
func lex(source string) ([]token, error) {
	source = strings.ReplaceAll(source, "\r\n", "\n")
	source = strings.ReplaceAll(source, "\r", "\n")
	source = strings.TrimSuffix(source, "\n") // keep_trailing_newline is off
	l := &lexer{src: source, line: 1, lineStart: true}
	for l.at < len(l.src) {
		if err := l.text(); err != nil {
			return nil, err
		}
	}
	l.add(tokEOF, "")
	return l.tokens, nil
}

func (l *lexer) add(k kind, text string) { l.tokens = append(l.tokens, token{k, text, l.line}) }

// advance moves on by n bytes and counts lines.
func (l *lexer) advance(n int) {
	l.line += strings.Count(l.src[l.at:l.at+n], "\n")
	l.at += n
}

// text reads up to the next tag, and the tag.
func (l *lexer) text() error {
	rest := l.src[l.at:]
	n := 0
	for {
		i := strings.IndexByte(rest[n:], '{')
		if i < 0 || n+i+1 >= len(rest) {
			l.emitText(rest)
			l.advance(len(rest))
			return nil
		}
		n += i
		if strings.IndexByte("{%#", rest[n+1]) >= 0 {
			break
		}
		n++
	}
	tag := rest[n : n+2]
	sign := byte(0)
	if n+2 < len(rest) && (rest[n+2] == '-' || rest[n+2] == '+') {
		sign = rest[n+2]
	}
	text := rest[:n]
	switch {
	case sign == '-':
		text = strings.TrimRightFunc(text, unicode.IsSpace)
	case sign == 0 && tag != "{{":
		if i := strings.LastIndexByte(text, '\n'); i >= 0 || l.lineStart {
			if strings.TrimFunc(text[i+1:], unicode.IsSpace) == "" {
				text = text[:i+1]
			}
		}
	}
	l.emitText(text)
	skip := n + 2
	if sign != 0 {
		skip++
	}
	l.advance(skip)
	l.lineStart = false
	switch tag {
	case "{#":
		return l.comment()
	case "{{":
		l.add(tokOpen, "")
		return l.tag("}}", tokClose)
	}
	if ok, err := l.raw(); ok || err != nil {
		return err
	}
	l.add(tokBegin, "")
	return l.tag("%}", tokEnd)
}

func (l *lexer) emitText(text string) {
	if text != "" {
		l.add(tokText, text)
	}
}

// closed removes white space after a tag that closes here. A block's first newline goes.
func (l *lexer) closed(sign byte, block bool) {
	rest := l.src[l.at:]
	switch {
	case sign == '-':
		l.advance(len(rest) - len(strings.TrimLeftFunc(rest, unicode.IsSpace)))
		l.lineStart = l.at > 0 && l.src[l.at-1] == '\n'
	case sign == 0 && block && strings.HasPrefix(rest, "\n"):
		l.advance(1)
		l.lineStart = true
	}
}

func (l *lexer) comment() error {
	i := strings.Index(l.src[l.at:], "#}")
	if i < 0 {
		return fail(l.line, "a comment has no end")
	}
	sign := byte(0)
	if i > 0 && (l.src[l.at+i-1] == '-' || l.src[l.at+i-1] == '+') {
		sign = l.src[l.at+i-1]
	}
	l.advance(i + 2)
	l.closed(sign, true)
	return nil
}

// word skips white space and takes a name; it does not move if another one stands there.
func word(s, name string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(strings.TrimLeftFunc(s, unicode.IsSpace), name)
	return rest, ok
}

// blockEnd takes an end of a block with its sign.
func blockEnd(s string) (rest string, sign byte, ok bool) {
	s = strings.TrimLeftFunc(s, unicode.IsSpace)
	if s != "" && (s[0] == '-' || s[0] == '+') {
		sign, s = s[0], s[1:]
	}
	rest, ok = strings.CutPrefix(s, "%}")
	return rest, sign, ok
}

// raw reads a raw block, whose text is no template.
func (l *lexer) raw() (bool, error) {
	src := l.src[l.at:]
	rest, ok := word(src, "raw")
	if !ok {
		return false, nil
	}
	rest, sign, ok := blockEnd(rest)
	if !ok {
		return false, nil
	}
	l.advance(len(src) - len(rest))
	l.closed(sign, true)
	src = l.src[l.at:]
	for from := 0; ; {
		i := strings.Index(src[from:], "{%")
		if i < 0 {
			return true, fail(l.line, "raw has no endraw")
		}
		at := from + i
		tail, before := src[at+2:], byte(0)
		if tail != "" && (tail[0] == '-' || tail[0] == '+') {
			before, tail = tail[0], tail[1:]
		}
		if tail, ok = word(tail, "endraw"); ok {
			if tail, sign, ok = blockEnd(tail); ok {
				text := src[:at]
				switch before {
				case '-':
					text = strings.TrimRightFunc(text, unicode.IsSpace)
				case 0:
					if j := strings.LastIndexByte(text, '\n'); strings.TrimFunc(text[j+1:], unicode.IsSpace) == "" {
						text = text[:j+1]
					}
				}
				l.emitText(text)
				l.advance(len(src) - len(tail))
				l.closed(sign, true)
				return true, nil
			}
		}
		from = at + 2
	}
}

// tag reads the tokens of a tag up to its end.
func (l *lexer) tag(end string, endKind kind) error {
	var open []byte // brackets
	for l.at < len(l.src) {
		s := l.src[l.at:]
		c := s[0]
		switch {
		case strings.ContainsRune(" \t\n\v\f", rune(c)):
			l.advance(1)
			continue
		case len(open) == 0:
			sign, n := byte(0), 0
			if c == '-' || c == '+' && end == "%}" {
				sign, n = c, 1
			}
			if strings.HasPrefix(s[n:], end) {
				l.advance(n + 2)
				l.add(endKind, "")
				l.closed(sign, end == "%}")
				return nil
			}
		}
		switch {
		case c == '"' || c == '\'':
			if err := l.quoted(c); err != nil {
				return err
			}
		case c >= '0' && c <= '9':
			l.number()
		case c == '_' || c < utf8.RuneSelf && unicode.IsLetter(rune(c)):
			n := strings.IndexFunc(s, func(r rune) bool {
				return r != '_' && (r >= utf8.RuneSelf || !unicode.IsLetter(r) && !unicode.IsDigit(r))
			})
			if n < 0 {
				n = len(s)
			}
			l.add(tokName, s[:n])
			l.advance(n)
		default:
			var err error
			if open, err = l.operator(open); err != nil {
				return err
			}
		}
	}
	return fail(l.line, "a tag has no %s", end)
}

// operator reads an operator or a bracket, and returns what of open is open after it.
func (l *lexer) operator(open []byte) ([]byte, error) {
	s := l.src[l.at:]
	op := ""
	for _, o := range operators {
		if strings.HasPrefix(s, o) {
			op = o
			break
		}
	}
	if op == "" {
		r, _ := utf8.DecodeRuneInString(s)
		return nil, fail(l.line, "unexpected %q", r)
	}
	switch op {
	case "(", "[", "{":
		if len(open) == maxDepth {
			return nil, fail(l.line, "brackets nest deeper than %d", maxDepth)
		}
		open = append(open, ")]}"[strings.IndexByte("([{", op[0])])
	case ")", "]", "}":
		if len(open) == 0 || open[len(open)-1] != op[0] {
			return nil, fail(l.line, "unexpected %s", op)
		}
		open = open[:len(open)-1]
	}
	l.add(tokOp, op)
	l.advance(len(op))
	return open, nil
}

func (l *lexer) number() {
	s := l.src[l.at:]
	digits := func(from int) int {
		for from < len(s) && (s[from] >= '0' && s[from] <= '9' || s[from] == '_') {
			from++
		}
		return from
	}
	n, k := digits(0), tokInt
	if n+1 < len(s) && s[n] == '.' && s[n+1] >= '0' && s[n+1] <= '9' {
		n, k = digits(n+1), tokFloat
	}
	if n < len(s) && (s[n] == 'e' || s[n] == 'E') {
		m := n + 1
		if m < len(s) && (s[m] == '-' || s[m] == '+') {
			m++
		}
		if m < len(s) && s[m] >= '0' && s[m] <= '9' {
			n, k = digits(m), tokFloat
		}
	}
	l.add(k, strings.ReplaceAll(s[:n], "_", ""))
	l.advance(n)
}

// quoted reads a string with Python's escapes.
func (l *lexer) quoted(quote byte) error {
	s, line := l.src[l.at:], l.line
	var b strings.Builder
	for i := 1; i < len(s); {
		c := s[i]
		switch {
		case c == quote:
			l.tokens = append(l.tokens, token{tokString, b.String(), line})
			l.advance(i + 1)
			return nil
		case c != '\\' || i+1 == len(s):
			b.WriteByte(c)
			i++
		default:
			n := escape(&b, s[i+1:])
			i += 1 + n
		}
	}
	return fail(line, "a string has no end")
}

// escape decodes what follows a backslash and returns how many bytes that are. Unknown escapes
// stay as they are, with the backslash.
func escape(b *strings.Builder, s string) int {
	if i := strings.IndexByte(`abfnrtv\'"`, s[0]); i >= 0 {
		b.WriteByte("\a\b\f\n\r\t\v\\'\""[i])
		return 1
	}
	digits, base := 0, rune(16)
	switch s[0] {
	case '\n':
		return 1
	case 'x':
		digits = 2
	case 'u':
		digits = 4
	case 'U':
		digits = 8
	}
	from := 1
	if s[0] >= '0' && s[0] <= '7' {
		from, base = 0, 8
		for digits < 3 && digits < len(s) && s[digits] >= '0' && s[digits] <= '7' {
			digits++
		}
	}
	if digits == 0 || from+digits > len(s) {
		b.WriteByte('\\')
		return 0
	}
	var r rune
	for _, c := range []byte(s[from : from+digits]) {
		d := strings.IndexByte("0123456789abcdef", c|0x20)
		if d < 0 {
			b.WriteByte('\\')
			return 0
		}
		r = r*base + rune(d)
	}
	if !utf8.ValidRune(r) {
		r = utf8.RuneError
	}
	b.WriteRune(r)
	return from + digits
}
