package command

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"phaseconv/verify"
)

// logEvery is how often progress is written where there is no terminal.
const logEvery = 10 * time.Second

// progress shows steps as bars on a terminal, and as lines elsewhere.
func progress(w io.Writer) verify.Progress {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return bars(f)
	}
	return lines(w)
}

func bars(f *os.File) verify.Progress {
	var bar *progressbar.ProgressBar
	current := ""
	return func(step string, done, total int) {
		if step != current {
			current = step
			bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(step),
				progressbar.OptionShowCount(), progressbar.OptionSetPredictTime(true), progressbar.OptionThrottle(100*time.Millisecond),
				progressbar.OptionSetWidth(24), progressbar.OptionClearOnFinish())
		}
		_ = bar.Set(done)
		if done == total {
			_ = bar.Finish()
			current = ""
		}
	}
}

func lines(w io.Writer) verify.Progress {
	var last time.Time
	var begin time.Time
	current := ""
	return func(step string, done, total int) {
		now := time.Now()
		if step != current {
			current, begin, last = step, now, now
		}
		if done == total {
			fmt.Fprintf(w, "%s: done, %d of %d, %s\n", step, done, total, now.Sub(begin).Round(100*time.Millisecond))
			current = ""
			return
		}
		if now.Sub(last) >= logEvery {
			last = now
			fmt.Fprintf(w, "%s: %d of %d\n", step, done, total)
		}
	}
}
