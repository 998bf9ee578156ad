// Package depcheck holds the direction of imports: cmd -> convert -> verify ->
// rotations -> format -> kernels -> spec, never back.
package depcheck

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// layers from the top down. A package may import its own layer and those below.
var layers = []string{"cmd", "convert", "verify", "rotations", "format", "kernels", "spec"}

// outside lists what a layer may import beside the standard library and phaseconv.
// The layers that are not listed may import any module.
var outside = map[string][]string{
	"kernels": {"golang.org/x/sys"},
	"spec":    {},
}

const module = "github.com/phaseconv/phaseconv"

// shared lists the internal packages that every layer may use; the others are for tests.
var shared = []string{"phaseconv/internal/buildinfo", "phaseconv/internal/svg"}

type pkg struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

// shorten takes the host and owner off the module's own paths, which are written
// as phaseconv/... below.
func (p *pkg) shorten() {
	for _, l := range [][]string{p.Imports, p.TestImports, p.XTestImports} {
		for i, path := range l {
			if rest, ok := strings.CutPrefix(path, module); ok {
				l[i] = "phaseconv" + rest
			}
		}
	}
	p.ImportPath = strings.Replace(p.ImportPath, module, "phaseconv", 1)
}

// layerOf returns the index of a package's layer, -1 for one that has none.
func layerOf(path string) int {
	rest, ok := strings.CutPrefix(path, "phaseconv/")
	if !ok {
		return -1
	}
	top, _, _ := strings.Cut(rest, "/")
	return slices.Index(layers, top)
}

func standard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".") && first != "phaseconv"
}

// check returns what is wrong with one package's imports.
func check(p pkg) (errs []error) {
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf(p.ImportPath+" imports "+format, args...))
	}
	from := layerOf(p.ImportPath)
	helper := strings.HasPrefix(p.ImportPath, "phaseconv/internal/") // of tests
	for _, im := range p.Imports {
		to := layerOf(im)
		switch {
		case standard(im):
		case strings.HasPrefix(im, "phaseconv/internal/"):
			if !helper && !slices.Contains(shared, im) {
				bad("%s, which is for tests", im)
			}
		case strings.HasPrefix(im, "phaseconv/"):
			if to < 0 {
				bad("%s, which belongs to no layer", im)
			} else if !helper && to < from {
				bad("%s: %s must not use %s", im, layers[from], layers[to])
			} else if !helper && layers[from] == "kernels" && layers[to] == "spec" {
				bad("%s: kernels stand alone", im)
			}
		case !helper:
			if allowed, ok := outside[layers[from]]; ok &&
				!slices.ContainsFunc(allowed, func(a string) bool { return im == a || strings.HasPrefix(im, a+"/") }) {
				bad("%s", im)
			}
		}
	}
	// Tests of a package may look down, and to helpers; those outside of it
	// (package x_test) may also look up, to try it in its place.
	for _, im := range p.TestImports {
		if to := layerOf(im); to >= 0 && from >= 0 && to < from {
			bad("%s in a test inside the package", im)
		}
	}
	for _, im := range append(slices.Clone(p.TestImports), p.XTestImports...) {
		if from >= 0 && layers[from] == "spec" && !standard(im) && layerOf(im) != from {
			bad("%s in a test: spec stands alone", im)
		}
	}
	return errs
}

func TestArrows(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	seen := make([]bool, len(layers))
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		p.shorten()
		l := layerOf(p.ImportPath)
		if l >= 0 {
			seen[l] = true
		} else if !strings.HasPrefix(p.ImportPath, "phaseconv/internal/") &&
			!strings.HasPrefix(p.ImportPath, "phaseconv/tools") {
			t.Errorf("%s belongs to no layer", p.ImportPath)
		}
		for _, err := range check(p) {
			t.Error(err)
		}
	}
	for i, ok := range seen {
		if !ok {
			t.Errorf("no package of %s was seen", layers[i])
		}
	}
}

// TestStatic: phaseconv itself never loads a shared library, so it stays one static program. The
// engine's worker does, and only it.
func TestStatic(t *testing.T) {
	const loader = "github.com/ebitengine/purego"
	for program, want := range map[string]bool{"phaseconv": false, "phaseconv-llama": true} {
		out, err := exec.Command("go", "list", "-deps", module+"/cmd/"+program).Output()
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Contains(strings.Fields(string(out)), loader); got != want && runtime.GOOS == "linux" {
			t.Errorf("%s imports %s: %v, want %v", program, loader, got, want)
		}
	}
}

// TestCheck: the check sees what it is there for.
func TestCheck(t *testing.T) {
	for _, x := range []struct {
		p  pkg
		ok bool
	}{
		{pkg{ImportPath: "phaseconv/verify/ppl", Imports: []string{"fmt", "math/rand/v2", "phaseconv/verify/refmodel",
			"phaseconv/rotations", "phaseconv/spec", "phaseconv/kernels/gemm"}}, true},
		{pkg{ImportPath: "phaseconv/rotations", Imports: []string{"phaseconv/verify"}}, false},
		{pkg{ImportPath: "phaseconv/format/gguf", Imports: []string{"phaseconv/rotations/internal/linalg"}}, false},
		{pkg{ImportPath: "phaseconv/kernels/gemm", Imports: []string{"phaseconv/format/dtype"}}, false},
		{pkg{ImportPath: "phaseconv/kernels/gemm", Imports: []string{"phaseconv/spec"}}, false},
		{pkg{ImportPath: "phaseconv/kernels/gemm",
			Imports: []string{"golang.org/x/sys/cpu", "phaseconv/kernels/internal/impl"}}, true},
		{pkg{ImportPath: "phaseconv/kernels/gemm", Imports: []string{"golang.org/x/text"}}, false},
		{pkg{ImportPath: "phaseconv/kernels/gemm", Imports: []string{"golang.org/x/sysop"}}, false},
		{pkg{ImportPath: "phaseconv/spec", Imports: []string{"encoding/json"}}, true},
		{pkg{ImportPath: "phaseconv/spec", Imports: []string{"golang.org/x/sys/cpu"}}, false},
		{pkg{ImportPath: "phaseconv/spec", Imports: []string{"phaseconv/kernels/gemm"}}, false},
		{pkg{ImportPath: "phaseconv/spec", XTestImports: []string{"phaseconv/rotations"}}, false},
		{pkg{ImportPath: "phaseconv/convert", Imports: []string{"phaseconv/internal/tiny"}}, false},
		{pkg{ImportPath: "phaseconv/convert", TestImports: []string{"phaseconv/internal/tiny"}}, true},
		{pkg{ImportPath: "phaseconv/convert", Imports: []string{"phaseconv/cmd/phaseconv/command"}}, false},
		{pkg{ImportPath: "phaseconv/cmd/phaseconv", Imports: []string{"phaseconv/convert", "github.com/urfave/cli/v3"}},
			true},
		{pkg{ImportPath: "phaseconv/rotations", XTestImports: []string{"phaseconv/verify/refmodel"}}, true},
		{pkg{ImportPath: "phaseconv/rotations", TestImports: []string{"phaseconv/verify/refmodel"}}, false},
		{pkg{ImportPath: "phaseconv/internal/tiny", Imports: []string{"phaseconv/format/gguf", "testing"}}, true},
	} {
		if errs := check(x.p); (len(errs) == 0) != x.ok {
			t.Errorf("%+v: %v", x.p, errs)
		}
	}
}
