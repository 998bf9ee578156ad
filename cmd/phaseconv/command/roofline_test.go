package command

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/kernels/measure"
)

// TestRoofline: the picture is XML whatever names stand in it, with a circle for each product,
// score and line of the legend.
func TestRoofline(t *testing.T) {
	r := &measure.Result{
		Threads: 2, Peak: 200, Peak1: 100,
		Bandwidth: []measure.Bandwidth{{Bytes: 1 << 20, Threads: 1, GBs: 10}, {Bytes: 1 << 20, Threads: 2, GBs: 20}},
		Products: []measure.Product{{Shape: measure.Shape{Model: "model", Name: "a<b", M: 8, N: 48, K: 64}, GFLOPS: 50,
			Share: 0.5}},
		Scores: []measure.Score{{Format: "F16", Keys: 100, Dim: 64, Heads: 1, Ns: 2, Ratio: 1},
			{Format: "1-bit", Keys: 100, Dim: 64, Heads: 8, Ns: 1, Ratio: 2}},
	}
	d := xml.NewDecoder(strings.NewReader(roofline(r)))
	circles, names := 0, ""
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e := tok.(type) {
		case xml.StartElement:
			if e.Name.Local == "circle" {
				circles++
			}
		case xml.CharData:
			names += string(e)
		}
	}
	if want := len(r.Products) + len(r.Scores) + 5; circles != want || !strings.Contains(names, "a<b") {
		t.Errorf("%d circles, want %d; text %q", circles, want, names)
	}
}
