package command

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/phaseconv/phaseconv/verify/progress"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// logEvery is how often progress is written where there is no terminal, and longestSilence how long a step
// may take over one part of its work before a line says that it is still at it.
const (
	logEvery       = 5 * time.Second
	longestSilence = 12 * time.Second
)

// showProgress shows steps as bars on a terminal, and as lines elsewhere.
func showProgress(w io.Writer) progress.Func {
	under := w
	if x, ok := w.(*closingWriter); ok {
		under = x.w
	}
	if f, ok := under.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return bars(f)
	}
	return lines(w)
}

// A closingWriter drops what is written after Close: a line of progress that comes too late.
type closingWriter struct {
	mu     sync.Mutex
	w      io.Writer
	closed bool
}

func (c *closingWriter) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return len(p), nil
	}
	return c.w.Write(p)
}

func (c *closingWriter) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
}

func bars(f *os.File) progress.Func {
	var bar *progressbar.ProgressBar
	current := ""
	return func(step string, done, total int) {
		if step != current {
			current = step
			bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(step),
				progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetPredictTime(true),
				progressbar.OptionThrottle(100*time.Millisecond),
				progressbar.OptionSetWidth(24), progressbar.OptionClearOnFinish())
		}
		_ = bar.Set(done)
		if done == total {
			_ = bar.Finish()
			current = ""
		}
	}
}

// pace says how fast a step goes and how long the rest will take, from what was
// done in the time since its first report.
func pace(done, rest int, spent time.Duration) string {
	if done <= 0 || rest < 0 || spent <= 0 {
		return ""
	}
	rate := float64(done) / spent.Seconds()
	left := time.Duration(float64(spent) / float64(done) * float64(rest))
	return fmt.Sprintf(", %.3g/s, %s left", rate, left.Round(time.Second))
}

// lines writes what is done, at most once in logEvery, when a step ends, and after longestSilence.
func lines(w io.Writer) progress.Func {
	l := &lineLog{w: w, last: time.Now()}
	return l.report
}

// A lineLog is progress as lines.
type lineLog struct {
	w  io.Writer
	mu sync.Mutex // of what follows
	// No step is silent for long because its first report comes late: what counts is when
	// the last line of any step was written.
	last               time.Time
	current            string // step, "" for none
	begin              time.Time
	first, done, total int
	beat               *time.Timer // while there is a step
}

func (l *lineLog) report(step string, done, total int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := time.Now()
	if step != l.current {
		l.current, l.begin, l.first = step, at, done
	}
	l.done, l.total = done, total
	if done == total {
		// What is over before anybody wondered needs no line.
		if total != 1 || at.Sub(l.begin) >= time.Second {
			fmt.Fprintf(l.w, "%s: done, %d of %d, %s\n", step, done, total, at.Sub(l.begin).Round(100*time.Millisecond))
			l.last = at
		}
		l.current = ""
		if l.beat != nil {
			l.beat.Stop()
		}
		return
	}
	if at.Sub(l.last) >= logEvery {
		l.line(at, "")
	}
	l.wait()
}

// line says how far the step is.
func (l *lineLog) line(at time.Time, still string) {
	l.last = at
	fmt.Fprintf(l.w, "%s: %s%d of %d%s\n", l.current, still, l.done, l.total,
		pace(l.done-l.first, l.total-l.done, at.Sub(l.begin)))
}

// wait sees to it that there is a line before silence is too long.
func (l *lineLog) wait() {
	if l.beat != nil {
		l.beat.Stop()
	}
	l.beat = time.AfterFunc(longestSilence-time.Since(l.last), func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if at := time.Now(); l.current != "" && at.Sub(l.last) >= longestSilence {
			l.line(at, "still ")
			l.wait()
		}
	})
}
