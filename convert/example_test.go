package convert_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
)

// A conversion, and a key decoded from the sidecar that it wrote.
func Example() {
	dir, err := os.MkdirTemp("", "phaseconv")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	o := convert.DefaultOptions()
	o.Source, o.Out = "../testdata/austen-moe", filepath.Join(dir, "austen")
	// As little as makes a quick example; the defaults fit better.
	o.Code, o.CalibrationTokens, o.Ctx, o.Chunks, o.Report = "srht", 256, 128, 1, false
	res, err := convert.Convert(context.Background(), o)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: contract and function hold: %v\n", res.Manifest.Model.Family, res.Verify.OK)
	fmt.Printf("keys per token: %d bytes as F16, %d coded\n", res.Verify.Bytes.KF16, res.Verify.Bytes.KCode)

	s, err := sidecar.Read(context.Background(), filepath.Join(o.Out, spec.GGUFSidecarName))
	if err != nil {
		log.Fatal(err)
	}
	code := s.Codes[0][0] // layer 0, KV head 0
	key, words := make([]float32, code.D), make([]uint32, code.Words())
	alpha := code.EncodeKey(code.Mean, words)
	code.DecodeKey(key, words, alpha)
	fmt.Printf("a key of %d numbers in %d words of signs and a scale\n", len(key), len(words))

	// Output:
	// mixtral: contract and function hold: true
	// keys per token: 2048 bytes as F16, 144 coded
	// a key of 128 numbers in 4 words of signs and a scale
}

// A field that cannot be is named, before any work.
func ExampleOptionError() {
	o := convert.DefaultOptions()
	o.Source, o.Out, o.Bits = "../testdata/austen-moe", "unused", 99
	_, err := convert.Plans(context.Background(), o)
	var bad *convert.OptionError
	fmt.Println(errors.As(err, &bad), bad.Field)
	// Output: true Bits
}
