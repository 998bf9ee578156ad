package command

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestLines: off a terminal a line is written every few seconds and at the end of a step,
// also where the first report of a step is late; what is over at once is not worth one. A step that
// reports nothing for long is said to be still at it, and when it is over no line comes after its last.
func TestLines(t *testing.T) { synctest.Test(t, testLines) }

func testLines(t *testing.T) {
	var out strings.Builder
	report := lines(&out)
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
		{0, "thinking", 0, 4}, {2 * time.Second, "thinking", 1, 4}, {30 * time.Second, "thinking", 4, 4},
	} {
		time.Sleep(x.after)
		report(x.step, x.done, x.total)
	}
	want := `fitting: 3 of 8, 0.5/s, 10s left
fitting: 6 of 8, 0.5/s, 4s left
fitting: done, 8 of 8, 14s
measuring: 1 of 3
measuring: done, 3 of 3, 1s
thinking: still 1 of 4, 0.0833/s, 36s left
thinking: still 1 of 4, 0.0417/s, 1m12s left
thinking: done, 4 of 4, 32s
`
	if out.String() != want {
		t.Errorf("%s\nwant\n%s", out.String(), want)
	}
}
