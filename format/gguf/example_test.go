package gguf_test

import (
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"

	"github.com/phaseconv/phaseconv/format/gguf"
)

// Write a small file, then read its metadata and a row of its tensor.
func Example() {
	dir, err := os.MkdirTemp("", "gguf")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "example.gguf")

	w, err := gguf.Create(path,
		[]gguf.KV{
			gguf.Value("general.architecture", "example"),
			gguf.Array("example.sizes", []uint32{32, 2}),
		},
		[]gguf.TensorSpec{{Name: "weight", Type: gguf.TypeQ8_0, Dims: []int{32, 2}}})
	if err != nil {
		log.Fatal(err)
	}
	defer w.Abort()
	err = w.WriteTensor("weight", func(out io.Writer) error {
		row := make([]float32, 32)
		for i := range row {
			row[i] = float32(i) - 16
		}
		size, err := gguf.RowBytes(gguf.TypeQ8_0, len(row))
		if err != nil {
			return err
		}
		enc := make([]byte, size)
		for range 2 {
			if err := gguf.QuantizeRow(gguf.TypeQ8_0, enc, row); err != nil {
				return err
			}
			if _, err := out.Write(enc); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		log.Fatal(err)
	}

	f, err := gguf.Open(path)
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	for _, kv := range f.KVs {
		fmt.Println(kv)
	}
	t, _ := f.Tensor("weight")
	fmt.Println(t.Name, t.Type, t.Shape())
	row := make([]float32, t.RowLen())
	if err := f.ReadRows(t, 1, 1, row); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.2f\n", row[:3])
	// Output:
	// general.architecture = "example"
	// example.sizes = uint32[2] 32, 2
	// weight Q8_0 [2 32]
	// [-16.00 -14.99 -13.98]
}
