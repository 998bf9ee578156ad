// Package wire frames the messages between phaseconv and its engine's worker: two programs
// on one machine with a pipe each way.
//
// A frame is a header, JSON of at most MaxHeader bytes, with blobs behind it whose lengths
// the header tells. All integers are little-endian:
//
//	uint32 magic, uint32 length of the header, header, blob 0, blob 1, ...
//
// Numbers in bulk (token ids, activations, rows of weights) are blobs; everything else is JSON.
package wire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"
)

// Magic begins every frame. What a library prints by mistake does not pass for one.
const Magic = 0x31574350 // "PCW1"

// Limits of a frame. A broken one is refused before memory is taken for it.
const (
	MaxHeader = 64 << 20
	MaxBlobs  = 1 << 16
	MaxBlob   = 1 << 33
)

// header is what stands in front of the blobs.
type header struct {
	// Kind tells requests, results, errors and progress apart.
	Kind string          `json:"kind"`
	Body json.RawMessage `json:"body,omitempty"`
	Lens []int64         `json:"lens,omitempty"`
}

// A Frame is one message.
type Frame struct {
	Kind  string
	Body  []byte // JSON
	Blobs [][]byte
}

// Decode parses the frame's body.
func (f *Frame) Decode(v any) error {
	if len(f.Body) == 0 {
		return fmt.Errorf("the %s frame has no body", f.Kind)
	}
	if err := json.Unmarshal(f.Body, v); err != nil {
		return fmt.Errorf("the %s frame: %w", f.Kind, err)
	}
	return nil
}

// A Conn sends and receives frames. One goroutine may send while another receives.
type Conn struct {
	r        *bufio.Reader
	w        *bufio.Writer
	received atomic.Int64
}

// Received is how many bytes of frames have come.
func (c *Conn) Received() int64 { return c.received.Load() }

// New returns a connection over two pipes.
func New(r io.Reader, w io.Writer) *Conn {
	return &Conn{r: bufio.NewReaderSize(r, 1<<16), w: bufio.NewWriterSize(w, 1<<16)}
}

// Send writes one frame. body becomes JSON; nil is none.
func (c *Conn) Send(kind string, body any, blobs ...[]byte) error {
	h := header{Kind: kind}
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		h.Body = b
	}
	for _, b := range blobs {
		h.Lens = append(h.Lens, int64(len(b)))
	}
	j, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if len(j) > MaxHeader || len(blobs) > MaxBlobs {
		return fmt.Errorf("a %s frame of %d bytes and %d blobs is too large", kind, len(j), len(blobs))
	}
	var head [8]byte
	binary.LittleEndian.PutUint32(head[:], Magic)
	binary.LittleEndian.PutUint32(head[4:], uint32(len(j)))
	for _, p := range append([][]byte{head[:], j}, blobs...) {
		if _, err := c.w.Write(p); err != nil {
			return err
		}
	}
	return c.w.Flush()
}

// Receive reads one frame. io.EOF means that the other side closed the pipe between frames.
func (c *Conn) Receive() (*Frame, error) {
	var head [8]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return nil, err
	}
	if m := binary.LittleEndian.Uint32(head[:]); m != Magic {
		return nil, fmt.Errorf("a frame begins with %#x instead of %#x", m, uint32(Magic))
	}
	n := binary.LittleEndian.Uint32(head[4:])
	if n > MaxHeader {
		return nil, fmt.Errorf("a frame's header has %d bytes, at most %d are allowed", n, MaxHeader)
	}
	j, err := readAll(c.r, int64(n))
	if err != nil {
		return nil, err
	}
	var h header
	if err := json.Unmarshal(j, &h); err != nil {
		return nil, fmt.Errorf("a frame's header: %w", err)
	}
	if len(h.Lens) > MaxBlobs {
		return nil, fmt.Errorf("a frame has %d blobs, at most %d are allowed", len(h.Lens), MaxBlobs)
	}
	f := &Frame{Kind: h.Kind, Body: h.Body}
	for i, n := range h.Lens {
		if n < 0 || n > MaxBlob {
			return nil, fmt.Errorf("blob %d of a frame has %d bytes, at most %d are allowed", i, n, int64(MaxBlob))
		}
		b, err := readAll(c.r, n)
		if err != nil {
			return nil, err
		}
		f.Blobs = append(f.Blobs, b)
		c.received.Add(n)
	}
	c.received.Add(int64(len(head) + len(j)))
	return f, nil
}

// piece is how much memory is taken at a time: a length alone does not make us take it.
const piece = 16 << 20

// readAll reads n bytes. A frame that ends early gives io.ErrUnexpectedEOF.
func readAll(r io.Reader, n int64) ([]byte, error) {
	b := make([]byte, 0, min(n, piece))
	for int64(len(b)) < n {
		at := len(b)
		if at == cap(b) {
			grown := make([]byte, at, min(n, int64(2*at)))
			copy(grown, b)
			b = grown
		}
		b = b[:cap(b)]
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return b, nil
}

// Int32s writes token ids as a blob.
func Int32s(x []int32) []byte {
	b := make([]byte, 0, 4*len(x))
	for _, v := range x {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	return b
}

// ReadInt32s is the inverse of Int32s.
func ReadInt32s(b []byte) ([]int32, error) {
	if len(b)%4 != 0 {
		return nil, fmt.Errorf("%d bytes are no array of int32", len(b))
	}
	x := make([]int32, len(b)/4)
	for i := range x {
		x[i] = int32(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return x, nil
}

// Float32s writes numbers as a blob.
func Float32s(x []float32) []byte {
	b := make([]byte, 4*len(x))
	for i, v := range x {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(v))
	}
	return b
}

// ReadFloat32s is the inverse of Float32s.
func ReadFloat32s(b []byte) ([]float32, error) {
	if len(b)%4 != 0 {
		return nil, fmt.Errorf("%d bytes are no array of float32", len(b))
	}
	x := make([]float32, len(b)/4)
	for i := range x {
		x[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return x, nil
}

// Float64s writes numbers as a blob.
func Float64s(x []float64) []byte {
	b := make([]byte, 8*len(x))
	for i, v := range x {
		binary.LittleEndian.PutUint64(b[8*i:], math.Float64bits(v))
	}
	return b
}

// ReadFloat64s is the inverse of Float64s.
func ReadFloat64s(b []byte) ([]float64, error) {
	if len(b)%8 != 0 {
		return nil, fmt.Errorf("%d bytes are no array of float64", len(b))
	}
	x := make([]float64, len(b)/8)
	for i := range x {
		x[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
	}
	return x, nil
}
