package command

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/phaseconv/phaseconv/verify/progress"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// logEvery is how often progress is written where there is no terminal.
const logEvery = 5 * time.Second

// showProgress shows steps as bars on a terminal, and as lines elsewhere.
func showProgress(w io.Writer) progress.Func {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return bars(f)
	}
	return lines(w, time.Now)
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

// lines writes what is done, at most once in logEvery by the clock now, and when a step ends.
func lines(w io.Writer, now func() time.Time) progress.Func {
	// No step is silent for long because its first report comes late: what counts is when
	// the last line of any step was written.
	last := now()
	var begin time.Time
	current, first := "", 0
	return func(step string, done, total int) {
		at := now()
		if step != current {
			current, begin, first = step, at, done
		}
		if done == total && total == 1 && at.Sub(begin) < time.Second {
			current = "" // over before anybody wondered
			return
		}
		if done == total {
			fmt.Fprintf(w, "%s: done, %d of %d, %s\n", step, done, total, at.Sub(begin).Round(100*time.Millisecond))
			last, current = at, ""
			return
		}
		if at.Sub(last) >= logEvery {
			last = at
			fmt.Fprintf(w, "%s: %d of %d%s\n", step, done, total, pace(done-first, total-done, at.Sub(begin)))
		}
	}
}
