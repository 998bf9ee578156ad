// Package svg writes small SVG pictures, byte for byte the same on every machine:
// elements, text and numbers with at most two decimals. It draws nothing by
// itself; colours come from the style sheet of the page, through class names.
package svg

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
)

// A Doc is a picture being written. The zero Doc is not ready; use New.
type Doc struct {
	b    strings.Builder
	open []string
}

// New begins a picture of w x h units that scales with the page. label is what a
// screen reader says; attrs are further attributes of the root element.
func New(w, h float64, label string, attrs ...any) *Doc {
	d := &Doc{}
	d.Open("svg", append([]any{
		"viewBox", "0 0 " + Num(w) + " " + Num(h), "role", "img", "aria-label", label,
	}, attrs...)...)
	return d
}

// Num formats a coordinate: two decimals at most, no negative zero. What is not
// finite becomes 0, since no viewer knows it.
func Num(x float64) string {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		x = 0
	}
	s := strconv.FormatFloat(math.Round(x*100)/100, 'f', 2, 64)
	s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	if s == "-0" {
		return "0"
	}
	return s
}

// Open starts an element; attrs are names and values in turn. Numbers are
// formatted by Num, other values by fmt and escaped.
func (d *Doc) Open(tag string, attrs ...any) {
	d.tag(tag, attrs)
	d.b.WriteString(">")
	d.open = append(d.open, tag)
}

// Close ends the element opened last.
func (d *Doc) Close() {
	if n := len(d.open); n > 0 {
		d.b.WriteString("</" + d.open[n-1] + ">")
		d.open = d.open[:n-1]
	}
}

// Leaf writes an element without content.
func (d *Doc) Leaf(tag string, attrs ...any) {
	d.tag(tag, attrs)
	d.b.WriteString("/>")
}

func (d *Doc) tag(tag string, attrs []any) {
	d.b.WriteString("<" + tag)
	for i := 0; i+1 < len(attrs); i += 2 {
		value := ""
		switch v := attrs[i+1].(type) {
		case float64:
			value = Num(v)
		case string:
			value = html.EscapeString(v)
		default:
			value = html.EscapeString(fmt.Sprint(v))
		}
		fmt.Fprintf(&d.b, ` %v="%s"`, attrs[i], value)
	}
}

// Line writes a line.
func (d *Doc) Line(x1, y1, x2, y2 float64, class string) {
	d.Leaf("line", "x1", x1, "y1", y1, "x2", x2, "y2", y2, "class", class)
}

// Dot writes a circle. A title, if any, is shown by viewers under the pointer.
func (d *Doc) Dot(x, y, r float64, class, title string) {
	if title == "" {
		d.Leaf("circle", "cx", x, "cy", y, "r", r, "class", class)
		return
	}
	d.Open("circle", "cx", x, "cy", y, "r", r, "class", class)
	d.Title(title)
	d.Close()
}

// Title gives the open element a text that viewers show under the pointer.
func (d *Doc) Title(s string) { d.b.WriteString("<title>" + html.EscapeString(s) + "</title>") }

// Text writes a line of text. anchor is start, middle or end.
func (d *Doc) Text(x, y float64, anchor, class, s string, attrs ...any) {
	d.Open("text", append([]any{"x", x, "y", y, "text-anchor", anchor, "class", class}, attrs...)...)
	d.b.WriteString(html.EscapeString(s))
	d.Close()
}

// Path writes a polyline through points.
func (d *Doc) Path(points [][2]float64, class string, attrs ...any) {
	if len(points) > 0 {
		d.Leaf("path", append([]any{"d", PathData(points, false), "class", class}, attrs...)...)
	}
}

// PathData is the d attribute of a polyline, or of a polygon when closed.
func PathData(points [][2]float64, closed bool) string {
	var b strings.Builder
	for i, p := range points {
		if i == 0 {
			b.WriteString("M")
		} else {
			b.WriteString("L")
		}
		b.WriteString(Num(p[0]) + " " + Num(p[1]))
	}
	if closed {
		b.WriteString("Z")
	}
	return b.String()
}

// String ends all open elements and returns the picture.
func (d *Doc) String() string {
	for len(d.open) > 0 {
		d.Close()
	}
	return d.b.String()
}
