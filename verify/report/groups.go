package report

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/phaseconv/phaseconv/spec"
)

// groupsView is the beta table of joint codes: keys and values of each group.
type groupsView struct {
	Tokens string
	Rows   []groupRow
	Means  []groupRow // of the keys, and of the values
}

type groupRow struct {
	Layer, Group       int
	Part, Heads, Given string
	Dims, Signs        int
	Cos, Left          betaCell
}

// Columns are the heads of the table.
func (*groupsView) Columns() []string {
	return []string{"Layer", "Group", "Part", "Heads", "Numbers", "Signs", "Given", "Cosine", "Energy left"}
}

func newGroups(v *view) *groupsView {
	if v.Detail == nil || len(v.Detail.Groups) == 0 {
		return nil
	}
	rows := v.Detail.Groups
	g := &groupsView{Tokens: comma(rows[0].Tokens)}
	number := func(x float64) betaCell {
		return betaCell{Text: fix(x, 3), Sort: strconv.FormatFloat(x, 'f', 5, 64)}
	}
	for _, part := range []string{"k", "v"} {
		var cos, left, n float64
		for i := range rows {
			if rows[i].Part == part {
				cos, left, n = cos+rows[i].Cos1bit, left+rows[i].EnergyLeft, n+1
			}
		}
		if n > 0 {
			g.Means = append(g.Means, groupRow{Part: partName(part), Cos: number(cos / n), Left: number(left / n)})
		}
	}
	for i := range rows {
		r := &rows[i]
		x := groupRow{Layer: r.Layer, Group: r.Group, Part: partName(r.Part), Heads: headRange(r), Dims: r.Dims,
			Signs: r.Signs, Given: missing, Cos: number(r.Cos1bit), Left: number(r.EnergyLeft)}
		x.Cos.Class = liftClass(r.Cos1bit-floorCos, 0.025)
		if r.Given {
			x.Given = "the layer below"
		}
		g.Rows = append(g.Rows, x)
	}
	return g
}

func partName(part string) string {
	if part == "v" {
		return "values"
	}
	return "keys"
}

// headRange names neighbouring heads by the first and the last.
func headRange(r *spec.GroupRow) string {
	if len(r.Heads) == 0 {
		return missing
	}
	first, last := r.Heads[0], r.Heads[len(r.Heads)-1]
	switch {
	case first == last:
		return strconv.Itoa(first)
	case last-first+1 == len(r.Heads):
		return fmt.Sprintf("%d to %d", first, last)
	}
	return strings.Trim(fmt.Sprint(r.Heads), "[]")
}
