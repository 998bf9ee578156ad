//go:build (linux || darwin) && (amd64 || arm64)

package worker

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/verify/engine/llama"
)

// A base is the logits of a job's first lane, kept for jobs that compare with the same.
type base struct {
	name string
	of   [sha256.Size]byte // what it was computed from
	rows [][]float32       // by scored token
	info llama.MeasuredLane
}

// bases are kept in the order of their use, the latest last.
type bases []*base

// inputs is the digest of what a base depends on.
func inputs(o llama.Measure, ids []byte) [sha256.Size]byte {
	lane, err := json.Marshal(o.Lanes[0])
	if err != nil {
		return [sha256.Size]byte{} // numbers and texts; a base without a digest is never found
	}
	h := sha256.New()
	for _, b := range [][]byte{lane, fmt.Appendf(nil, "|%d|%d|", o.Ctx, o.First), ids} {
		h.Write(b)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// find returns the base of a job, nil if there is none.
func (b *bases) find(name string, of [sha256.Size]byte) *base {
	i := slices.IndexFunc(*b, func(x *base) bool { return x.name == name && x.of == of })
	if name == "" || i < 0 {
		return nil
	}
	x := (*b)[i]
	*b = append(slices.Delete(*b, i, i+1), x)
	return x
}

// begin makes room for a base of so many rows and returns it, nil where it would be too large.
func (b *bases) begin(name string, of [sha256.Size]byte, rows, vocab int) *base {
	need := func(x *base) int { return 4 * len(x.rows) * vocab }
	x := &base{name: name, of: of, rows: make([][]float32, rows)}
	if name == "" || need(x) > llama.KeptBytes {
		return nil
	}
	sum := need(x)
	for _, y := range *b {
		sum += need(y)
	}
	for len(*b) > 0 && sum > llama.KeptBytes {
		sum -= need((*b)[0])
		*b = slices.Delete(*b, 0, 1)
	}
	return x
}
