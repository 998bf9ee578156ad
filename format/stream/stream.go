// Package stream moves and counts the bytes of large files: it stops when a context ends, and
// tells how far it is.
package stream

import (
	"context"
	"io"
)

// piece is how many bytes are moved between two looks at the context.
const piece = 1 << 20

// Copy copies src to dst up to its end. It fails as reading and writing do, and with the cause
// of ctx when that ends. m, if not nil, counts the bytes.
func Copy(ctx context.Context, dst io.Writer, src io.Reader, m *Meter) error {
	buf := make([]byte, piece)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.ReadFull(src, buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
			m.Add(int64(n))
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return nil
		default:
			return err
		}
	}
}

// A Meter reports how many MiB of a total are done. A nil Meter counts nothing. It is not safe
// for concurrent use.
type Meter struct {
	report      func(done, total int)
	done, total int64 // bytes
	last        int
}

// NewMeter reports that nothing of total bytes is done. report may be nil.
func NewMeter(total int64, report func(done, total int)) *Meter {
	if report == nil {
		return nil
	}
	m := &Meter{report: report, total: max(total, 0)}
	report(0, m.units())
	return m
}

// units is the total in MiB, rounded up, so that there is something to be done.
func (m *Meter) units() int { return max(1, int((m.total+piece-1)/piece)) }

// Add counts n bytes as done. The last of all is the last to be reported.
func (m *Meter) Add(n int64) {
	if m == nil || m.last == m.units() {
		return
	}
	m.done += n
	at := min(int(m.done/piece), m.units()-1)
	if m.done >= m.total {
		at = m.units()
	}
	if at != m.last {
		m.last = at
		m.report(at, m.units())
	}
}

// Finish reports that everything is done.
func (m *Meter) Finish() {
	if m != nil {
		m.Add(m.total - m.done)
	}
}
