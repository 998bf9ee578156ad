// Command vectors writes the golden vectors of the specification: keys, signs,
// scales and scores, bit for bit, for authors of runtimes.
//
//	go run ./rotations/internal/vectors -o spec/vectors
//	go run ./rotations/internal/vectors -sidecar out/phaseconv.sidecar
//
// The first form writes the files of spec/vectors, which a test compares with
// what it would write. The second prints vectors for a sidecar of one's own.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
)

func main() {
	out := flag.String("o", "", "folder to write the golden vectors to")
	sidecar := flag.String("sidecar", "", "print vectors for this sidecar")
	flag.Parse()
	if err := run(*out, *sidecar); err != nil {
		fmt.Fprintln(os.Stderr, "vectors:", err)
		os.Exit(1)
	}
}

func run(out, sidecar string) error {
	switch {
	case sidecar != "":
		v, err := sidecarVectors(sidecar)
		if err != nil {
			return err
		}
		b, err := encode(v)
		if err != nil {
			return err
		}
		_, err = os.Stdout.Write(b)
		return err
	case out != "":
		files, err := vectorFiles()
		if err != nil {
			return err
		}
		if err := os.MkdirAll(out, 0o777); err != nil {
			return err
		}
		for name, b := range files {
			if err := os.WriteFile(filepath.Join(out, name), b, 0o666); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("name a folder with -o or a sidecar with -sidecar")
}

// vectorFiles returns all files of spec/vectors by name.
func vectorFiles() (map[string][]byte, error) {
	edge, err := edgeVectors()
	if err != nil {
		return nil, err
	}
	all := map[string]any{"generator.json": generatorVectors(), "scores.json": scoreVectors(), "edge.json": edge}
	for _, c := range headCases() {
		v, err := c.vector()
		if err != nil {
			return nil, err
		}
		all["head-"+c.name+".json"] = v
	}
	for i, c := range groupCases() {
		v, err := c.vector(i)
		if err != nil {
			return nil, err
		}
		all["group-"+c.name+".json"] = v
	}
	described, files, err := groupFiles()
	if err != nil {
		return nil, err
	}
	all["groups.json"] = described
	rotations, more, err := ffnFiles()
	if err != nil {
		return nil, err
	}
	all["ffn.json"] = rotations
	maps.Copy(files, more)
	for name, v := range all {
		if files[name], err = encode(v); err != nil {
			return nil, err
		}
	}
	return files, nil
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	err := e.Encode(v)
	return b.Bytes(), err
}
