package command

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// table prints aligned columns; numbers are right-aligned.
type table struct {
	head []string
	rows [][]string
}

func newTable(head ...string) *table { return &table{head: head} }

// row adds a row. Cells may be words of a file that somebody else made.
func (t *table) row(cells ...string) {
	for i, c := range cells {
		cells[i] = inLine(c)
	}
	t.rows = append(t.rows, cells)
}

// printable writes control characters and others that would move the cursor or
// hide text as escapes: names in a file must not drive the terminal. Line ends of
// our own messages stay.
func printable(s string) string {
	if !strings.ContainsFunc(s, hidden) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if hidden(r) {
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// inLine is printable for words inside a line, which they must not end.
func inLine(s string) string { return strings.ReplaceAll(printable(s), "\n", `\n`) }

// say prints a line in which words of files stand: they are kept from driving the terminal.
func say(w io.Writer, format string, args ...any) {
	for i, a := range args {
		switch x := a.(type) {
		case string:
			args[i] = inLine(x)
		case error:
			args[i] = inLine(x.Error())
		}
	}
	fmt.Fprintf(w, format, args...)
}

func hidden(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }

func (t *table) print(w io.Writer) {
	width := make([]int, len(t.head))
	numeric := make([]bool, len(t.head))
	for i := range numeric {
		numeric[i] = len(t.rows) > 0
	}
	for n, r := range append([][]string{t.head}, t.rows...) {
		for i, c := range r {
			width[i] = max(width[i], utf8.RuneCountInString(c))
			if n > 0 && strings.Trim(c, "0123456789.+-%") != "" {
				numeric[i] = false
			}
		}
	}
	for _, r := range append([][]string{t.head}, t.rows...) {
		var b strings.Builder
		for i, c := range r {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if numeric[i] {
				b.WriteString(pad + c)
			} else {
				b.WriteString(c + pad)
			}
			b.WriteString("  ")
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// shapeText writes a shape as 576x192.
func shapeText(shape []int) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(shape), "[]"), " ", "x")
}
