package llama_test

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
)

// TestReport: the report of a conversion that llama.cpp computed has what that of the own pass has, with the same
// numbers, and names the engine.
func TestReport(t *testing.T) {
	w := start(t, llama.Start{})
	src, dir := tinyFile(t), t.TempDir()
	detail := func(name string, engines engine.Engines) *spec.Detail {
		o := jointOptions(src, filepath.Join(dir, name), "kv", 0, engines)
		o.Joint, o.Code, o.Bits, o.Alloc, o.Report = nil, codec.Frame, 1, "uniform", true
		if _, err := convert.Convert(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(o.Out, "report.json"))
		if err != nil {
			t.Fatal(err)
		}
		var r spec.ReportJSON
		if err := json.Unmarshal(b, &r); err != nil {
			t.Fatal(err)
		}
		page, err := os.ReadFile(filepath.Join(o.Out, spec.ReportName))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(page), "Computed by") != (engines != nil) {
			t.Errorf("%s: the page tells who computed, or does not", name)
		}
		return r.Detail
	}
	engines := &llama.Engines{Worker: w, Place: place()}
	own, got := detail("own", nil), detail("llama", engines)
	for i, f := range reflect.VisibleFields(reflect.TypeFor[spec.Detail]()) {
		if a, b := reflect.ValueOf(*own).Field(i), reflect.ValueOf(*got).Field(i); a.IsZero() != b.IsZero() {
			t.Errorf("%s: %v and %v", f.Name, a, b)
		}
	}
	for i, a := range own.Positions {
		// A sign may turn where a number is near 0, as in TestJointVerify.
		if b := got.Positions[i]; math.Abs(a.KLD-b.KLD) > 0.1*a.KLD+a.KLDErr/2 {
			t.Errorf("positions %d to %d: KLD %g, in llama.cpp %g", a.From, a.To, a.KLD, b.KLD)
		}
	}
	for i, a := range own.Angles {
		if b := got.Angles[i]; math.Abs(a.Raw-b.Raw) > 0.01*a.Raw {
			t.Errorf("layer %d, head %d: angle %g, in llama.cpp %g", a.Layer, a.Head, a.Raw, b.Raw)
		}
	}
	o := jointOptions(src, filepath.Join(dir, "joint"), "kv", 0, engines)
	o.Report = true
	if _, err := convert.Convert(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(o.Out, spec.ReportName))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), "How well the signs of a group describe") {
		t.Error("the page of joint codes has no table of groups")
	}
	if len(own.Angles) == 0 || len(own.Positions) == 0 {
		t.Error("nothing was compared")
	}
}
