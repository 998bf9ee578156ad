package sidecar_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
)

// A sidecar with one layer of two KV heads is written, and read as a runtime reads it that
// decodes keys.
func ExampleRead() {
	dir, err := os.MkdirTemp("", "sidecar")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ropes, err := sidecar.RopeText(rope.Params{Theta: 10000, Dim: 64}, rope.Params{Theta: 10000, Dim: 64})
	if err != nil {
		log.Fatal(err)
	}
	some := strings.Repeat("0", 64) // digests of model and text stand here
	s := &sidecar.Sidecar{
		Kind: "srht", HeadDim: 64, Anchor: 64, Sink: 4, Rope: ropes, SourceSHA256: some, WeightsSHA256: some, Tool: "example",
		Calibration: sidecar.Calibration{SHA256: some, Tokens: 512, Context: 512}, Codes: make([][]*codec.Code, 1),
	}
	for head := range 2 {
		c, err := codec.DataFree("srht", 64, 1, 0, head)
		if err != nil {
			log.Fatal(err)
		}
		s.Codes[0] = append(s.Codes[0], c)
	}
	path := filepath.Join(dir, "model.phase.gguf")
	if err := s.WriteGGUF(path); err != nil {
		log.Fatal(err)
	}

	if s, err = sidecar.Read(context.Background(), path); err != nil {
		log.Fatal(err)
	}
	c := s.Codes[0][1]
	key, words := make([]float32, c.D), make([]uint32, c.Words())
	key[3] = 1
	scale := c.EncodeKey(key, words)
	c.DecodeKey(key, words, scale)
	fmt.Printf("%d layer, %d KV heads; key 3 of a unit basis comes back as %.3f\n", len(s.Codes), len(s.Codes[0]), key[3])
	// Output: 1 layer, 2 KV heads; key 3 of a unit basis comes back as 1.000
}
