package svg

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

func TestNum(t *testing.T) {
	for _, x := range []struct {
		in   float64
		want string
	}{
		{0, "0"}, {math.Copysign(0, -1), "0"}, {-0.004, "0"}, {1.005, "1"}, {1.006, "1.01"}, {-2.5, "-2.5"}, {100, "100"},
		{math.NaN(), "0"}, {math.Inf(1), "0"}, {1e6, "1000000"},
	} {
		if got := Num(x.in); got != x.want {
			t.Errorf("Num(%v) = %q, want %q", x.in, got, x.want)
		}
	}
}

// TestWellFormed: an XML reader accepts the picture and gives back its text.
func TestWellFormed(t *testing.T) {
	const nasty = `<&"'> é`
	d := New(100, 50, nasty, "class", nasty)
	d.Open("g", "class", "x")
	d.Line(0, 0, 1, 1, "axis")
	d.Dot(1, 2, 3, "dot", nasty)
	d.Text(1, 2, "end", "label", nasty)
	d.Path([][2]float64{{0, 0}, {1, 2.345}}, "curve")
	d.Path(nil, "nothing")
	r := xml.NewDecoder(strings.NewReader(d.String()))
	texts, paths := 0, 0
	for {
		tok, err := r.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch x := tok.(type) {
		case xml.CharData:
			if string(x) != nasty {
				t.Errorf("text %q, want %q", x, nasty)
			}
			texts++
		case xml.StartElement:
			if x.Name.Local == "path" {
				paths++
				if got := x.Attr[0].Value; got != "M0 0L1 2.35" {
					t.Errorf("path %q", got)
				}
			}
		}
	}
	if texts != 2 || paths != 1 {
		t.Errorf("%d texts and %d paths, want 2 and 1", texts, paths)
	}
}
