package sidecar

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/phaseconv/phaseconv/format/jsonx"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/fit"
	"github.com/phaseconv/phaseconv/spec"
)

// FFNRotations is what a file with rotations of FFN inputs says of them: spec/ffn-rotations.md. The
// rotations themselves are read and written a layer at a time, since those of many experts outgrow
// the memory.
type FFNRotations struct {
	SourceSHA256, Tool string
	// Layers of the model, of which the file may have some.
	Layers int
	// Basis is spec.FFNOwn or spec.FFNShared.
	Basis string
	// Block is the largest block, Rows bounds the rows of a matrix that were looked at, half of which
	// were fitted to.
	Block, Rows int
	Seed        uint64
	Measured    []spec.FFNRow
}

// An FFNLayer has the rotations of a layer's two FFN inputs, in the order of spec.FFNInputs: one for
// each expert, or one.
type FFNLayer [2][]*fit.BlockRotation

// An FFNShape is how many rotations each input of a layer has, and their sizes.
type FFNShape struct {
	Layer, Experts int
	Sizes          [2]FFNSize
}

// An FFNSize is that of a block-diagonal matrix of Dim numbers in blocks of Block.
type FFNSize struct{ Dim, Block int }

// tensor is the shape of n of them as a tensor.
func (s FFNSize) tensor(n int) []int { return []int{n, s.Dim / s.Block, s.Block, s.Block} }

// ShapeOf returns the shape of a layer.
func ShapeOf(layer int, x *FFNLayer) FFNShape {
	s := FFNShape{Layer: layer, Experts: len(x[0])}
	for i := range x {
		s.Sizes[i] = FFNSize{x[i][0].D, x[i][0].Block}
	}
	return s
}

// FFNTensorName returns the name of the tensor with a layer's rotations of an input.
func FFNTensorName(layer, input int) string {
	return fmt.Sprintf("blk.%d.%s.rotation", layer, spec.FFNInputs[input])
}

func (h *FFNRotations) keys() ([]keyValue, error) {
	measured, err := json.Marshal(h.Measured)
	if err != nil {
		return nil, err
	}
	if len(measured) > spec.MaxFFNMeasured {
		return nil, fmt.Errorf("key %s has %d bytes; %d are allowed", spec.KeyFFNMeasured, len(measured), spec.MaxFFNMeasured)
	}
	return []keyValue{
		{spec.KeyFFNVersion, spec.FFNRotationsVersion},
		{spec.KeyFFNBasis, h.Basis},
		{spec.KeyFFNLayers, h.Layers},
		{spec.KeyFFNBlock, h.Block},
		{spec.KeyFFNRows, h.Rows},
		{spec.KeyFFNSeed, strconv.FormatUint(h.Seed, 10)},
		{spec.KeyFFNMeasured, string(measured)},
		{spec.KeySourceSHA256, h.SourceSHA256},
		{spec.KeyTool, h.Tool},
	}, nil
}

// Write writes a file with the layers of these shapes, which layer returns one after the other: GGUF
// if path ends with .gguf, else safetensors. When ctx ends, it returns its cause and leaves no file.
func (h *FFNRotations) Write(ctx context.Context, path string, shapes []FFNShape,
	layer func(s FFNShape) (*FFNLayer, error)) error {
	keys, err := h.keys()
	if err != nil {
		return err
	}
	var parts []part
	for _, s := range shapes {
		for i, size := range s.Sizes {
			parts = append(parts, part{name: FFNTensorName(s.Layer, i), shape: size.tensor(s.Experts)})
		}
	}
	create := createSafetensors
	if strings.HasSuffix(path, ".gguf") {
		create = func(path string, keys []keyValue, parts []part) (partWriter, error) {
			return createGGUF(path, spec.FFNRotationsType, keys, parts)
		}
	}
	w, err := create(path, keys, parts)
	if err != nil {
		return err
	}
	defer w.Abort()
	for _, s := range shapes {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		x, err := layer(s)
		if err != nil {
			return err
		}
		for i, of := range x {
			err := w.WriteTensor(FFNTensorName(s.Layer, i), func(o io.Writer) error {
				for _, r := range of {
					if err := writeFloats(o, r.R); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return w.Commit()
}

// An FFNFile is an open file with rotations of FFN inputs.
type FFNFile struct {
	FFNRotations
	Shapes []FFNShape // of the layers that have rotations, in order

	path string
	f    sidecarFile
}

// Close closes the file.
func (f *FFNFile) Close() error { return f.f.Close() }

// IsFFN says whether a file has rotations of FFN inputs, by its keys.
func IsFFN(path string) bool {
	f, err := openSidecar(path)
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = f.number(spec.KeyFFNVersion)
	return err == nil
}

// OpenFFN opens a file with rotations of FFN inputs and refuses, naming the key or tensor, what its
// version does not define. Numbers are checked as layers are read.
func OpenFFN(path string) (*FFNFile, error) {
	f, err := openSidecar(path)
	if err != nil {
		return nil, err
	}
	out := &FFNFile{path: path, f: f}
	if err := out.read(); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return out, nil
}

func (f *FFNFile) read() error {
	version, err := f.f.number(spec.KeyFFNVersion)
	if err != nil {
		return err
	}
	if version != spec.FFNRotationsVersion {
		return fmt.Errorf("key %s is %d; this program reads version %d", spec.KeyFFNVersion, version,
			spec.FFNRotationsVersion)
	}
	keys, err := f.keys()
	if err != nil {
		return err
	}
	if err := onlyKeys(f.f, keys, version); err != nil {
		return err
	}
	r := &keyReader{f: f.f, version: version}
	f.Basis = r.text(spec.KeyFFNBasis)
	f.Layers = r.number(spec.KeyFFNLayers, 1, spec.MaxLayers)
	f.Block = r.number(spec.KeyFFNBlock, 1, spec.MaxHeadDim)
	f.Rows = r.number(spec.KeyFFNRows, 2, 1<<30)
	seed, measured := r.text(spec.KeyFFNSeed), r.text(spec.KeyFFNMeasured)
	f.SourceSHA256, f.Tool = r.digest(spec.KeySourceSHA256), r.text(spec.KeyTool)
	if r.err != nil {
		return r.err
	}
	if f.Basis != spec.FFNOwn && f.Basis != spec.FFNShared {
		return fmt.Errorf("key %s is %.20q; version %d knows %s and %s", spec.KeyFFNBasis, f.Basis, version, spec.FFNOwn,
			spec.FFNShared)
	}
	if f.Seed, err = strconv.ParseUint(seed, 10, 64); err != nil || strconv.FormatUint(f.Seed, 10) != seed {
		return fmt.Errorf("key %s is %.40q, which is no number of 64 bits", spec.KeyFFNSeed, seed)
	}
	if len(measured) > spec.MaxFFNMeasured || jsonx.UnmarshalStrict([]byte(measured), &f.Measured) != nil {
		return fmt.Errorf("key %s is no list of measurements", spec.KeyFFNMeasured)
	}
	return f.readShapes()
}

// readShapes reads the names and shapes of the tensors.
func (f *FFNFile) readShapes() error {
	seen := 0
	for l := range f.Layers {
		if !f.f.has(FFNTensorName(l, 0)) && !f.f.has(FFNTensorName(l, 1)) {
			continue
		}
		s := FFNShape{Layer: l}
		for i := range s.Sizes {
			name := FFNTensorName(l, i)
			got, ok := f.f.shape(name)
			if !ok || len(got) != 4 || got[0] < 1 || got[0] > spec.MaxFFNExperts || got[1] < 1 || got[2] != got[3] ||
				got[2] < 1 || got[2] > f.Block || got[1] > spec.MaxFFNDim/got[2] {
				return fmt.Errorf("tensor %s is %v; F32 [rotations, blocks, n, n] with n up to %d is needed", name, got, f.Block)
			}
			if i > 0 && got[0] != s.Experts || f.Basis == spec.FFNShared && got[0] != 1 {
				return fmt.Errorf("tensor %s has %d rotations: both inputs of a layer have as many, %s ones one", name, got[0],
					spec.FFNShared)
			}
			s.Experts, s.Sizes[i] = got[0], FFNSize{got[1] * got[2], got[2]}
		}
		f.Shapes = append(f.Shapes, s)
		seen += 2
	}
	if seen == 0 || seen != len(f.f.names()) {
		return fmt.Errorf("%d tensors, of which %d are rotations of the FFN inputs of %d layers; there must be some, and no others",
			len(f.f.names()), seen, f.Layers)
	}
	return nil
}

// Layer reads the rotations of a layer. Every block must be orthonormal, as those of codes are.
func (f *FFNFile) Layer(ctx context.Context, s FFNShape) (*FFNLayer, error) {
	out := &FFNLayer{}
	for i, size := range s.Sizes {
		var err error
		if out[i], err = f.rotations(ctx, FFNTensorName(s.Layer, i), s.Experts, size); err != nil {
			if ctx.Err() == nil {
				err = fmt.Errorf("%s: %w", f.path, err)
			}
			return nil, err
		}
	}
	return out, nil
}

func (f *FFNFile) rotations(ctx context.Context, name string, n int, size FFNSize) ([]*fit.BlockRotation, error) {
	x, err := readTensor(f.f, name, size.tensor(n)...)
	if err != nil {
		return nil, err
	}
	var out []*fit.BlockRotation
	each, block := size.Dim*size.Block, size.Block*size.Block
	for i := range n {
		r := &fit.BlockRotation{D: size.Dim, Block: size.Block, R: x[i*each : (i+1)*each]}
		for at := 0; at < each; at += block {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if err := codec.CheckOrthonormal(r.R[at:at+block], size.Block, size.Block); err != nil {
				return nil, fmt.Errorf("tensor %s: rotation %d, block %d is no rotation: %w", name, i, at/block, err)
			}
		}
		out = append(out, r)
	}
	return out, nil
}
