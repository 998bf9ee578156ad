package command

import (
	"strings"
	"testing"
	"time"
)

// TestLines: off a terminal a line is written every few seconds and at the end of a step,
// also where the first report of a step is late; what is over at once is not worth one.
func TestLines(t *testing.T) {
	var out strings.Builder
	clock := time.Unix(0, 0)
	report := lines(&out, func() time.Time { return clock })
	for _, x := range []struct {
		after       time.Duration
		step        string
		done, total int
	}{
		{time.Second, "reading", 0, 1}, {0, "reading", 1, 1},
		{0, "fitting", 0, 8}, {2 * time.Second, "fitting", 1, 8},
		{4 * time.Second, "fitting", 3, 8}, {4 * time.Second, "fitting", 5, 8},
		{2 * time.Second, "fitting", 6, 8}, {2 * time.Second, "fitting", 8, 8},
		{6 * time.Second, "measuring", 1, 3}, {time.Second, "measuring", 3, 3},
	} {
		clock = clock.Add(x.after)
		report(x.step, x.done, x.total)
	}
	want := `fitting: 3 of 8, 0.5/s, 10s left
fitting: 6 of 8, 0.5/s, 4s left
fitting: done, 8 of 8, 14s
measuring: 1 of 3
measuring: done, 3 of 3, 1s
`
	if out.String() != want {
		t.Errorf("%s\nwant\n%s", out.String(), want)
	}
}
