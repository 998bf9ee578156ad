// Package ppl measures perplexity and KL divergence by the protocol of
// llama-perplexity: the text is cut into windows of ctx tokens, the first token
// of each is replaced by BOS where the tokenizer adds one, and the second half of
// each window is scored.
package ppl

import "fmt"

// Windows is text cut for measuring.
type Windows struct {
	Ctx    int
	Tokens [][]int32 // the inputs, with BOS put in
	// Targets holds the scored tokens: those at positions First()+1 .. ctx-1 of
	// each window, window by window.
	Targets []int32

	first int
}

// First returns the first position whose prediction is scored: ctx/2 after Cut.
func (w *Windows) First() int { return w.first }

// From scores windows, which are all of one length, at positions from first on.
func From(windows [][]int32, first int) *Windows {
	w := &Windows{Ctx: len(windows[0]), Tokens: windows, first: first}
	for _, ids := range windows {
		w.Targets = append(w.Targets, ids[first+1:]...)
	}
	return w
}

// PerWindow returns how many predictions of a window are scored.
func (w *Windows) PerWindow() int { return w.Ctx - 1 - w.First() }

// Part returns windows [from, to).
func (w *Windows) Part(from, to int) *Windows {
	n := w.PerWindow()
	return &Windows{Ctx: w.Ctx, first: w.first, Tokens: w.Tokens[from:to], Targets: w.Targets[from*n : to*n]}
}

// minWindow is the shortest window of which something is scored.
const minWindow = 4

// A ShortError says that a text does not fill one window.
type ShortError struct{ Tokens, Ctx int }

func (e *ShortError) Error() string {
	return fmt.Sprintf("the text has %d tokens, one window of context %d needs %d", e.Tokens, e.Ctx, e.Ctx)
}

// Cut makes at most chunks windows of ctx tokens (all that fit when chunks <= 0) from the
// beginning of the text. bos < 0 leaves the first token as it is.
func Cut(ids []int32, ctx, chunks int, bos int32) (*Windows, error) {
	return cut(ids, ctx, chunks, bos, func(i, _, _ int) int { return i })
}

// CutSpread is Cut with windows spread evenly over the whole text: of N windows that fit, the
// one with number floor(i N / chunks), from 0, becomes window i. What is fitted to the beginning
// of a text knows its first subjects only.
func CutSpread(ids []int32, ctx, chunks int, bos int32) (*Windows, error) {
	return cut(ids, ctx, chunks, bos, func(i, fit, n int) int { return i * fit / n })
}

// cut takes window number(i, fit, n) as window i of n, where so many fit.
func cut(ids []int32, ctx, chunks int, bos int32, number func(i, fit, n int) int) (*Windows, error) {
	if ctx < minWindow {
		return nil, fmt.Errorf("a context of %d tokens is too short to measure anything", ctx)
	}
	fit := len(ids) / ctx
	n := fit
	if chunks > 0 {
		n = min(n, chunks)
	}
	if n == 0 {
		return nil, &ShortError{len(ids), ctx}
	}
	w := &Windows{Ctx: ctx, first: ctx / 2}
	for i := range n {
		at := number(i, fit, n) * ctx
		t := append([]int32(nil), ids[at:at+ctx]...)
		w.Targets = append(w.Targets, t[w.First()+1:]...)
		if bos >= 0 {
			t[0] = bos
		}
		w.Tokens = append(w.Tokens, t)
	}
	return w, nil
}
