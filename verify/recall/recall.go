// Package recall asks a model for what stands far back in its context, with float caches and with the
// cache types of a runtime: a mean divergence that looks fine can hide that one number is read wrong,
// which is what breaks a call of a tool.
//
// An answer counts if it is exact: at each of its tokens, given those before, the most likely token is
// the right one. That is what greedy decoding would write.
package recall

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/phaseconv/phaseconv/format/tokenizer"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// The tasks.
const (
	// Pairs is a list of keys and values, one of which is asked for.
	Pairs = "key-value"
	// Passage is a sentence in a long text, which is to be completed.
	Passage = "passage"
)

// Options of Run.
type Options struct {
	// Ctx is the context in tokens, Depths where what is asked for stands: 0 for the beginning, 1 for
	// the end.
	Ctx    int
	Depths []float64
	// Samples is how often each task is asked at each depth.
	Samples int
	// Text is the long text of Passage.
	Text     string
	Seed     uint64
	Progress func(done, total int)
}

// A Lane is a cache to measure, nil for floats.
type Lane struct {
	Name  string
	Cache refmodel.Cache
}

// A Group is a model and the caches to measure with it.
type Group struct {
	Model     *refmodel.Model
	Converted bool // as rows say it
	Lanes     []Lane
}

// A Row is what one lane answered to one task at one depth.
type Row struct {
	Cache string `json:"cache"`
	// Converted says that the model is the second of two, or an artifact alone.
	Converted bool    `json:"converted"`
	Task      string  `json:"task"`
	Depth     float64 `json:"depth"`
	Exact     int     `json:"exact"`
	Samples   int     `json:"samples"`
	// Kept counts answers that are exact here and with the first lane, Lost those that are with the
	// first lane alone.
	Kept int `json:"kept"`
	Lost int `json:"lost"`
}

// question is one window, the answer at its end.
type question struct {
	task   string
	depth  float64
	ids    []int32
	answer int // tokens
}

// Run asks every lane the same questions. The first lane of the first group is what the others are
// compared with. The models of all groups have the one tokenizer.
func Run(ctx context.Context, tk *tokenizer.Tokenizer, o Options, groups ...Group) ([]Row, error) {
	questions, err := ask(tk, o)
	if err != nil {
		return nil, err
	}
	var rows []Row
	var right [][]bool // [lane, of all groups][question]
	for _, g := range groups {
		right = append(right, make([][]bool, len(g.Lanes))...)
	}
	// A few windows at a time: memory does not grow with their number.
	const perPass = 5
	total := (len(questions) + perPass - 1) / perPass
	for at := 0; at < len(questions); at += perPass {
		part := questions[at:min(len(questions), at+perPass)]
		lane := 0
		for _, g := range groups {
			got, err := answers(ctx, g.Model, part, g.Lanes)
			if err != nil {
				return nil, err
			}
			for i := range got {
				right[lane] = append(right[lane], got[i]...)
				lane++
			}
		}
		if o.Progress != nil {
			o.Progress(at/perPass+1, total)
		}
	}
	lane := 0
	for _, g := range groups {
		for _, l := range g.Lanes {
			for _, task := range []string{Pairs, Passage} {
				for _, depth := range o.Depths {
					r := Row{Cache: l.Name, Converted: g.Converted, Task: task, Depth: depth}
					r.count(questions, right[0], right[lane])
					rows = append(rows, r)
				}
			}
			lane++
		}
	}
	return rows, nil
}

// count counts the answers to the questions of a row: those of its lane beside those of the first.
func (r *Row) count(questions []question, first, own []bool) {
	for i, q := range questions {
		if q.task != r.Task || q.depth != r.Depth {
			continue
		}
		r.Samples++
		if own[i] {
			r.Exact++
		}
		switch {
		case first[i] && own[i]:
			r.Kept++
		case first[i]:
			r.Lost++
		}
	}
}

// answers says for each lane which questions it answers exactly.
func answers(ctx context.Context, m *refmodel.Model, questions []question, lanes []Lane) ([][]bool, error) {
	var windows [][]int32
	var variants []*refmodel.Variant
	for _, q := range questions {
		windows = append(windows, q.ids)
	}
	for _, l := range lanes {
		variants = append(variants, &refmodel.Variant{Cache: l.Cache})
	}
	if err := m.Run(ctx, windows, variants, refmodel.Options{}); err != nil {
		return nil, err
	}
	d, vocab := m.Config.Hidden, m.Config.Vocab
	// The rows of all answers, of all lanes one after the other.
	var hidden []float32
	var want []int32
	for i := range variants {
		for j, q := range questions {
			for k := len(q.ids) - q.answer; k < len(q.ids); k++ {
				at := (j*len(q.ids) + k - 1) * d
				hidden = append(hidden, variants[i].Hidden[at:at+d]...)
				want = append(want, q.ids[k])
			}
		}
		variants[i].Hidden = nil
	}
	normed, err := m.FinalNorm(hidden)
	if err != nil {
		return nil, err
	}
	const piece = 8192
	best, top := make([]float32, len(want)), make([]int32, len(want))
	logits := make([]float32, len(want)*min(piece, vocab))
	for v0 := 0; v0 < vocab; v0 += piece {
		width := min(piece, vocab-v0)
		if err := m.PackHead(ctx, v0, v0+width); err != nil {
			return nil, err
		}
		if err := m.HeadLogits(ctx, logits[:len(want)*width], normed); err != nil {
			return nil, err
		}
		for r := range want {
			for k, z := range logits[r*width : (r+1)*width] {
				if v0+k == 0 || z > best[r] {
					best[r], top[r] = z, int32(v0+k)
				}
			}
		}
	}
	out := make([][]bool, len(lanes))
	r := 0
	for i := range lanes {
		for _, q := range questions {
			ok := true
			for range q.answer {
				ok = ok && top[r] == want[r]
				r++
			}
			out[i] = append(out[i], ok)
		}
	}
	return out, nil
}

// ask makes the questions.
func ask(tk *tokenizer.Tokenizer, o Options) ([]question, error) {
	if o.Ctx < 64 {
		return nil, option.Bad("Ctx", o.Ctx, "expected at least 64 tokens")
	}
	if o.Samples < 1 || o.Samples > 1000 || len(o.Depths) == 0 {
		return nil, option.Bad("Samples", o.Samples, "expected 1 to 1000 samples, and a depth")
	}
	var out []question
	for _, depth := range o.Depths {
		if !(depth >= 0 && depth <= 1) {
			return nil, option.Bad("Depths", depth, "a depth is from 0, the beginning, to 1, the end")
		}
		for s := range o.Samples {
			r := rand.New(rand.NewPCG(o.Seed, uint64(s)<<32|uint64(depth*1e6)))
			for _, f := range []func(*rand.Rand, float64, *tokenizer.Tokenizer, Options) (question, error){pairs, passage} {
				q, err := f(r, depth, tk, o)
				if err != nil {
					return nil, err
				}
				out = append(out, q)
			}
		}
	}
	return out, nil
}

// pairs makes a list that fills the context, and asks for the value of one of its keys.
func pairs(r *rand.Rand, depth float64, tk *tokenizer.Tokenizer, o Options) (question, error) {
	line := func(key, value int) string { return fmt.Sprintf("record-%04d: %05d\n", key, value) }
	per := len(tk.Encode(line(1234, 56789), tokenizer.Plain))
	if per == 0 {
		return question{}, fmt.Errorf("the tokenizer has no tokens for numbers")
	}
	n := o.Ctx/per + 2
	keys := r.Perm(10000)
	if n > len(keys) {
		n = len(keys)
	}
	// What stands before the window is cut off, so the first lines cannot be asked for.
	first := 3
	at := min(first+int(depth*float64(n-first)), n-1)
	var lines []string
	value := 0
	for i := range n {
		v := r.IntN(100000)
		if i == at {
			value = v
		}
		lines = append(lines, line(keys[i], v))
	}
	return finish(tk, o, Pairs, depth, strings.Join(lines, ""),
		fmt.Sprintf("record-%04d:", keys[at]), fmt.Sprintf(" %05d", value))
}

var places = []string{"harbour", "library", "mill", "chapel", "theatre", "market", "garden", "bridge"}

// passage puts a sentence into a text, and begins it again at the end.
func passage(r *rand.Rand, depth float64, tk *tokenizer.Tokenizer, o Options) (question, error) {
	what := fmt.Sprintf("The number written on the door of the old %s is", places[r.IntN(len(places))])
	answer := fmt.Sprintf(" %05d", r.IntN(100000))
	lines := strings.SplitAfter(o.Text, "\n")
	start := 0
	if len(lines) > 1 {
		start = r.IntN(max(1, len(lines)/4))
	}
	text, total := lines[start:], 0
	var tokens []int
	for i := 0; i < len(text) && total < o.Ctx+o.Ctx/8; i++ { // some more, to be cut
		tokens = append(tokens, len(tk.Encode(text[i], tokenizer.Plain)))
		total += tokens[i]
	}
	text = text[:len(tokens)]
	// The last lines that fill the window; the needle goes between them.
	room := o.Ctx - len(tk.Encode(what+answer+".\n"+what+answer, tokenizer.Plain)) - 8
	first, sum := len(text), 0
	for first > 0 && sum+tokens[first-1] <= room {
		first--
		sum += tokens[first]
	}
	at, passed := first, 0
	for at < len(text) && passed < int(depth*float64(sum)) {
		passed += tokens[at]
		at++
	}
	head := strings.Join(text[max(0, first-4):at], "") // some lines more, to be cut
	return finish(tk, o, Passage, depth, head+what+answer+".\n"+strings.Join(text[at:], "")+"\n", what, answer)
}

// finish makes a window of exactly the context: the end of the text, the question and the answer.
func finish(tk *tokenizer.Tokenizer, o Options, task string, depth float64,
	text, ask, answer string) (question, error) {
	end := tk.Encode(text+ask, tokenizer.Plain)
	a := tk.Encode(text+ask+answer, tokenizer.Plain)
	// Tokens of the question may merge with those of the answer; what is common is the question.
	k := 0
	for k < len(end) && k < len(a) && end[k] == a[k] {
		k++
	}
	n := len(a) - k
	if n < 1 || len(a) < o.Ctx {
		return question{}, option.Errorf("the %s task has %d tokens, a context of %d needs a longer text (--text)", task,
			len(a), o.Ctx)
	}
	ids := append([]int32(nil), a[len(a)-o.Ctx:]...)
	if v := tk.Vocab(); v.AddBOS && v.BOS >= 0 {
		ids[0] = v.BOS
	}
	return question{task, depth, ids, n}, nil
}
