package ppl

import "testing"

// TestCutSpread: windows lie where the rule says, at both ends of what is possible, and BOS
// replaces inputs, not targets.
func TestCutSpread(t *testing.T) {
	ids := make([]int32, 107) // ten windows of ten tokens, and a rest
	for i := range ids {
		ids[i] = int32(i)
	}
	for _, x := range []struct {
		chunks int
		want   []int32 // first tokens
	}{
		{1, []int32{0}}, {2, []int32{0, 50}}, {3, []int32{0, 30, 60}}, {4, []int32{0, 20, 50, 70}},
		{10, []int32{0, 10, 20, 30, 40, 50, 60, 70, 80, 90}}, {99, []int32{0, 10, 20, 30, 40, 50, 60, 70, 80, 90}},
		{0, []int32{0, 10, 20, 30, 40, 50, 60, 70, 80, 90}},
	} {
		w, err := CutSpread(ids, 10, x.chunks, 7)
		if err != nil {
			t.Fatal(err)
		}
		if len(w.Tokens) != len(x.want) || len(w.Targets) != 4*len(x.want) {
			t.Fatalf("%d chunks: %d windows, %d targets", x.chunks, len(w.Tokens), len(w.Targets))
		}
		for i, first := range x.want {
			row := w.Tokens[i]
			if len(row) != 10 || row[0] != 7 || row[1] != first+1 || row[9] != first+9 || w.Targets[4*i] != first+6 {
				t.Errorf("%d chunks, window %d: %v, targets from %d", x.chunks, i, row, w.Targets[4*i])
			}
		}
	}
	if _, err := CutSpread(ids[:9], 10, 1, -1); err == nil {
		t.Error("a window from less than one")
	}
}
