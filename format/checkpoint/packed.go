package checkpoint

import (
	"fmt"
	"io"
	"sync"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/safetensors"
)

// mxfp4 is the element type of experts that are stored as blocks and scales, as GGUF names it.
const mxfp4 = "MXFP4"

// The sizes of a block: numbers, bytes of their codes, bytes of a block in GGUF.
const mxNumbers, mxCodes, mxBlock = 32, 16, 17

// A packed source is one expert's part of tensors that hold all experts, with gate and up by turns
// (gpt-oss). Matrices are stored in one of two ways:
//
//	NAME         [experts, cols, parts*rows], transposed
//	NAME_blocks  [experts, parts*rows, cols/32, 16] and NAME_scales without the 16: MXFP4
//
// and biases as [experts, parts*rows]. The source's row r is number parts*r + part.
type packed struct {
	expert, part, parts int
	rows, cols          int // cols is 0 for a bias
	plain               safetensors.Ref
	blocks, scales      safetensors.Ref // instead of plain
}

func (p *packed) mx() bool { return p.blocks.Tensor != nil }

func (p *packed) dtype() string {
	if p.mx() {
		return mxfp4
	}
	return p.plain.Tensor.DType
}

func (p *packed) shape() []int {
	if p.cols == 0 {
		return []int{p.rows}
	}
	return []int{p.rows, p.cols}
}

// stored lists the tensors in the files.
func (p *packed) stored() []string {
	if p.mx() {
		return []string{p.blocks.Tensor.Name, p.scales.Tensor.Name}
	}
	return []string{p.plain.Tensor.Name}
}

// packedExperts finds the packed tensors of a folder, gives each expert's part a name, and returns
// the names of the stored tensors.
func (b *hfBackend) packedExperts() (map[string]bool, error) {
	stored := map[string]bool{}
	for _, t := range b.cfg.Tensors() {
		name, part, parts, ok := b.cfg.Family.HFPacked(t.Name)
		if !ok {
			continue
		}
		name = b.name(name)
		experts, rows, cols := t.Shape[0], t.Shape[1], 0
		if len(t.Shape) == 3 {
			cols = t.Shape[2]
		}
		x := packed{part: part, parts: parts, rows: rows, cols: cols}
		var err error
		if _, ok := b.set.Find(name + "_blocks"); ok && cols > 0 {
			if x.blocks, err = b.ref(name+"_blocks", "U8", experts, parts*rows, cols/mxNumbers, mxCodes); err == nil {
				x.scales, err = b.ref(name+"_scales", "U8", experts, parts*rows, cols/mxNumbers)
			}
			if err == nil && cols%mxNumbers != 0 {
				err = fmt.Errorf("tensor %s has rows of %d numbers, no multiple of %d", name, cols, mxNumbers)
			}
		} else if cols > 0 {
			x.plain, err = b.ref(name, "", experts, cols, parts*rows)
		} else {
			x.plain, err = b.ref(name, "", experts, parts*rows)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.dir, err)
		}
		for _, n := range x.stored() {
			stored[n] = true
		}
		for e := range experts {
			one := x
			one.expert = e
			n := fmt.Sprintf("%s[%d,%d::%d]", name, e, part, parts)
			b.packed[n] = &one
			b.packedOf[t.Name] = append(b.packedOf[t.Name], n)
		}
	}
	return stored, nil
}

// ref finds a stored tensor of a shape, and of a type if one is given.
func (b *hfBackend) ref(name, dtype string, shape ...int) (safetensors.Ref, error) {
	r, ok := b.set.Find(name)
	if !ok {
		return r, fmt.Errorf("tensor %s is missing", name)
	}
	if !sameShape(r.Tensor.Shape, shape) {
		return r, fmt.Errorf("tensor %s has shape %v, the configuration implies %v", name, r.Tensor.Shape, shape)
	}
	if dtype != "" && r.Tensor.DType != dtype {
		return r, fmt.Errorf("tensor %s is %s, expected %s", name, r.Tensor.DType, dtype)
	}
	return r, nil
}

// read decodes rows [row0, row0+n) into dst. cache holds the last matrix that was stored
// transposed.
func (p *packed) read(row0, n int, dst []float32, cache *turned) error {
	switch {
	case p.mx():
		raw := make([]byte, n*p.cols/mxNumbers*mxBlock)
		if err := p.repack(raw, row0, n); err != nil {
			return err
		}
		return gguf.DequantizeRow(gguf.TypeMXFP4, dst[:n*p.cols], raw)
	case p.cols == 0:
		all := make([]float32, p.parts*p.rows)
		if err := p.plain.File.ReadRows(p.plain.Tensor, p.expert, 1, all); err != nil {
			return err
		}
		for i := range p.rows {
			dst[i] = all[i*p.parts+p.part]
		}
		return nil
	}
	return cache.read(p, row0, n, dst)
}

// repack sets dst to rows [row0, row0+n) as GGUF stores them: a scale, then 16 bytes whose low
// nibbles are the first 16 numbers. Here byte j has the numbers 2j and 2j+1.
func (p *packed) repack(dst []byte, row0, n int) error {
	blocks := p.cols / mxNumbers
	// Rows of gate and up alternate, so one stretch holds those of both.
	first := p.expert*p.parts*p.rows + row0*p.parts + p.part
	span := (n-1)*p.parts + 1
	codes, scales := make([]byte, span*blocks*mxCodes), make([]byte, span*blocks)
	if _, err := p.blocks.File.Reader(p.blocks.Tensor).ReadAt(codes, int64(first)*int64(blocks*mxCodes)); err != nil {
		return fmt.Errorf("%s: tensor %s: %w", p.blocks.File.Path, p.blocks.Tensor.Name, err)
	}
	if _, err := p.scales.File.Reader(p.scales.Tensor).ReadAt(scales, int64(first)*int64(blocks)); err != nil {
		return fmt.Errorf("%s: tensor %s: %w", p.scales.File.Path, p.scales.Tensor.Name, err)
	}
	for r := range n {
		for k := range blocks {
			at := r*p.parts*blocks + k
			out, in := dst[(r*blocks+k)*mxBlock:][:mxBlock], codes[at*mxCodes:][:mxCodes]
			out[0] = scales[at]
			for j := range mxCodes / 2 {
				// Numbers 2j and 2j+1 lie in byte j, those 16 further on in byte j+8.
				out[1+2*j] = in[j]&15 | in[j+mxCodes/2]<<4
				out[2+2*j] = in[j]>>4 | in[j+mxCodes/2]&0xf0
			}
		}
	}
	return nil
}

// A turned matrix is the last one that was read whole, because it is stored transposed.
type turned struct {
	mu     sync.Mutex
	tensor *safetensors.Tensor
	expert int
	data   []float32
}

func (c *turned) read(p *packed, row0, n int, dst []float32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	wide := p.parts * p.rows
	if c.tensor != p.plain.Tensor || c.expert != p.expert {
		c.tensor = nil
		if cap(c.data) < p.cols*wide {
			c.data = make([]float32, p.cols*wide)
		}
		c.data = c.data[:p.cols*wide]
		if err := p.plain.File.ReadRows(p.plain.Tensor, p.expert*p.cols, p.cols, c.data); err != nil {
			return err
		}
		c.tensor, c.expert = p.plain.Tensor, p.expert
	}
	for r := range n {
		for j := range p.cols {
			dst[r*p.cols+j] = c.data[j*wide+(row0+r)*p.parts+p.part]
		}
	}
	return nil
}

// section returns the bytes of MXFP4 rows as GGUF has them, which are made as they are read.
func (p *packed) section() *io.SectionReader {
	size := int64(p.rows) * int64(p.cols/mxNumbers*mxBlock)
	return io.NewSectionReader(&repacked{p}, 0, size)
}

type repacked struct{ p *packed }

// ReadAt implements io.ReaderAt. A few rows are made at a time.
func (x *repacked) ReadAt(b []byte, off int64) (int, error) {
	width := int64(x.p.cols / mxNumbers * mxBlock)
	done := 0
	for done < len(b) {
		row := int((off + int64(done)) / width)
		if row >= x.p.rows {
			return done, io.EOF
		}
		skip := int((off + int64(done)) % width)
		n := min(x.p.rows-row, (skip+len(b)-done+int(width)-1)/int(width), max(1, 1<<18/int(width)))
		buf := make([]byte, n*int(width))
		if err := x.p.repack(buf, row, n); err != nil {
			return done, err
		}
		done += copy(b[done:], buf[skip:])
	}
	return done, nil
}

// Relaid says whether a tensor's bytes are not to be had as they are: its numbers lie otherwise in
// the files, and can only be read by rows.
func (c *Checkpoint) Relaid(t *Tensor) bool {
	b, ok := c.b.(*hfBackend)
	if !ok {
		return false
	}
	p := b.packed[t.Sources[0]]
	return p != nil && !p.mx()
}
