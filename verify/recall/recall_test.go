package recall

import (
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/tokenizer"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/verify/refmodel"
	"github.com/phaseconv/phaseconv/verify/texts"
)

func open(t *testing.T) (*checkpoint.Checkpoint, *tokenizer.Tokenizer) {
	t.Helper()
	dir := t.TempDir()
	tiny.New(t, "llama", tiny.Options{}).HF(t, dir)
	c, err := checkpoint.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	tk, err := c.Tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	return c, tk
}

// TestAsk: windows are full, end with the answer, and have it once more where it belongs.
func TestAsk(t *testing.T) {
	_, tk := open(t)
	o := Options{Ctx: 1200, Depths: []float64{0, 0.5, 1}, Samples: 2, Text: string(texts.Evaluation), Seed: 1}
	questions, err := ask(tk, o)
	if err != nil || len(questions) != 12 {
		t.Fatal(len(questions), err)
	}
	for _, q := range questions {
		if len(q.ids) != o.Ctx {
			t.Fatalf("%s: %d tokens", q.task, len(q.ids))
		}
		answer := strings.TrimSpace(string(tk.Decode(q.ids[len(q.ids)-q.answer:])))
		before := string(tk.Decode(q.ids[:len(q.ids)-q.answer]))
		at := strings.Index(before, answer)
		if len(answer) != 5 || at < 0 {
			t.Errorf("%s at %g: the answer %q is not in the text", q.task, q.depth, answer)
			continue
		}
		if d := float64(at) / float64(len(before)); d < q.depth-0.15 || d > q.depth+0.15 {
			t.Errorf("%s at %g: it stands at %.2f", q.task, q.depth, d)
		}
	}
	again, err := ask(tk, o)
	if err != nil || again[3].ids[700] != questions[3].ids[700] {
		t.Error("the same seed asks another question")
	}
	o.Text = "Too short. "
	if _, err := ask(tk, o); err == nil {
		t.Error("a text that does not fill the context was taken")
	}
}

// TestAnswers: an answer is exact if each of its tokens is the most likely one, by another way of
// computing it.
func TestAnswers(t *testing.T) {
	c, tk := open(t)
	m := refmodel.New(c.Config, c, 2)
	ids := tk.Encode("It was a truth that nobody had told her, and she did not ask for it again. ", tokenizer.Plain)[:20]
	greedy := func(ids []int32) int32 {
		v := &refmodel.Variant{}
		if err := m.Run(t.Context(), [][]int32{ids}, []*refmodel.Variant{v}, refmodel.Options{}); err != nil {
			t.Fatal(err)
		}
		normed, err := m.FinalNorm(v.Hidden[(len(ids)-1)*c.Config.Hidden:])
		if err != nil {
			t.Fatal(err)
		}
		z := make([]float32, c.Config.Vocab)
		if err := m.Logits(t.Context(), [][]float32{z}, [][]float32{normed}, 0, c.Config.Vocab); err != nil {
			t.Fatal(err)
		}
		best := 0
		for i := range z {
			if z[i] > z[best] {
				best = i
			}
		}
		return int32(best)
	}
	right := append([]int32(nil), ids...)
	for range 3 {
		right = append(right, greedy(right))
	}
	wrong := append([]int32(nil), right...)
	wrong[21] = (wrong[21] + 1) % int32(c.Config.Vocab)
	got, err := answers(t.Context(), m, []question{{ids: right, answer: 3}, {ids: wrong, answer: 3}}, []Lane{{}, {}})
	if err != nil || !got[0][0] || got[0][1] || !got[1][0] || got[1][1] {
		t.Errorf("got %v, %v", got, err)
	}
}
