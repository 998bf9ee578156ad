// Package importer holds that another module can import this one.
package importer

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// program is what the README shows: a model is opened, planned and described.
const program = `package main

import (
	"context"
	"fmt"
	"os"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/kernels/onebit"
	"github.com/phaseconv/phaseconv/rotations/codec"
	_ "github.com/phaseconv/phaseconv/rotations/sidecar"
	_ "github.com/phaseconv/phaseconv/verify"
)

func main() {
	model, err := checkpoint.Open(os.Args[1])
	if err != nil {
		panic(err)
	}
	defer model.Close()
	o := convert.DefaultOptions()
	o.Source = os.Args[1]
	plans, err := convert.Plans(context.Background(), o)
	if err != nil {
		panic(err)
	}
	code, err := codec.DataFree("srht", model.Config.Layers[0].HeadDim, 1, 0, 0)
	if err != nil {
		panic(err)
	}
	fmt.Println(model.Config.Family.Name, len(plans[0].Tensors) > 0, code.Words() == onebit.Words(code.B))
}
`

// TestOtherModule builds and runs a program of another module against this one.
func TestOtherModule(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"main.go": program,
		"go.mod": "module example.org/importer\n\ngo 1.26.0\n\nrequire github.com/phaseconv/phaseconv v0.0.0\n\n" +
			"replace github.com/phaseconv/phaseconv => " + root + "\n",
		"go.sum": string(sums),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "run", "-mod=mod", ".", filepath.Join(root, "testdata/austen-moe"))
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "mixtral true true\n" {
		t.Errorf("%v: %s", err, out)
	}
}
