package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
)

// A groupFile says what is in two sidecars of version 2, one in each container, for authors
// of readers.
type groupFile struct {
	Version int          `json:"version"`
	Files   []string     `json:"files"`
	Layers  []groupLayer `json:"layers"`
}

type groupLayer struct {
	Heads    int         `json:"heads"`
	HeadDim  int         `json:"head_dim"`
	ValueDim int         `json:"value_dim"`
	Groups   []groupCode `json:"groups"`
}

type groupCode struct {
	Parts    []string `json:"parts"`
	Mean     *array   `json:"mean"`
	Decode   *array   `json:"decode"`
	Encode   *array   `json:"encode,omitempty"`
	Gain     string   `json:"gain,omitempty"`
	PartGain string   `json:"part_gain,omitempty"`
}

// The two files, under the names that an artifact gives them.
const (
	groupGGUF        = "groups.phase.gguf"
	groupSafetensors = "groups.sidecar"
)

// groupFiles returns the two sidecars and their description: a layer in two spans, one with
// keys and values apart, one without any group, and one of another shape with values alone.
func groupFiles() (*groupFile, map[string][]byte, error) {
	out := &groupFile{Version: spec.VersionGroups, Files: []string{groupGGUF, groupSafetensors}}
	text, err := sidecar.RopeText(rope.Params{Theta: theta, Dim: 8}, rope.Params{Theta: 500, Dim: 8})
	if err != nil {
		return nil, nil, err
	}
	digest := func(c string) string { return strings.Repeat(c, 32) }
	s := &sidecar.Sidecar{Kind: codec.Frame, Anchor: 64, Sink: 4, Recent: 64, Pairs: rope.Half, Rope: text,
		SourceSHA256: digest("0a"), WeightsSHA256: digest("1b"),
		Calibration: sidecar.Calibration{SHA256: digest("2c"), Tokens: 12288, Context: 512}, Tool: "phaseconv vectors"}
	seed := uint64(30000)
	for _, x := range []struct {
		heads, dk, dv int
		cases         []groupCase
	}{
		{3, 8, 8, []groupCase{
			{parts: []string{"k0", "k1", "v0", "v1"}, b: 40, partGain: []float32{1, 1.25, 2, 3}},
			{parts: []string{"k2", "v2"}, b: 16, gain: 0.5},
		}},
		{3, 8, 8, []groupCase{
			{parts: []string{"k0", "k1", "k2"}, b: 24, orthonormal: true},
			{parts: []string{"v0"}, b: 8, partGain: []float32{1.5}}, {parts: []string{"v1", "v2"}, b: 8},
		}},
		{3, 8, 8, nil},
		{2, 4, 6, []groupCase{{parts: []string{"v0", "v1"}, b: 16, gain: 1.5, partGain: []float32{2, 4}}}},
	} {
		y, described := sidecar.Layer{Heads: x.heads, KeyDim: x.dk, ValueDim: x.dv},
			groupLayer{x.heads, x.dk, x.dv, []groupCode{}}
		for _, c := range x.cases {
			c.dk, c.dv = x.dk, x.dv
			v := &groupVector{}
			g, err := c.group(seed, v)
			if err != nil {
				return nil, nil, fmt.Errorf("group %v: %w", c.parts, err)
			}
			seed += 10
			y.Groups = append(y.Groups, g)
			described.Groups = append(described.Groups, groupCode{c.parts, v.Mean, v.Decode, v.Encode, v.Gain, v.PartGain})
		}
		s.Layers, out.Layers = append(s.Layers, y), append(out.Layers, described)
	}
	dir, err := os.MkdirTemp("", "vectors")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	files := map[string][]byte{}
	for name, write := range map[string]func(string) error{groupGGUF: s.WriteGGUF, groupSafetensors: s.WriteSafetensors} {
		path := filepath.Join(dir, name)
		if err := write(path); err != nil {
			return nil, nil, err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, nil, err
		}
		files[name] = b
	}
	return out, files, nil
}
