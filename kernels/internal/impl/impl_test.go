package impl

import (
	"slices"
	"testing"
)

func TestSelect(t *testing.T) {
	defer func(old []entry) { entries = old }(entries)
	a, b, c, other := true, false, true, true
	Register("p", "a", &a)
	Register("p", "b", &b)
	Register("p", "c", &c)
	Register("q", "a", &other)
	if got := List("p"); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Fatalf("List = %v", got)
	}
	if Select("p", "b") || !a || b || !c {
		t.Fatal("selecting an unsupported tier must fail and change nothing")
	}
	if Select("p", "x") {
		t.Fatal("selected a tier that does not exist")
	}
	if !Select("p", "c") || a || b || !c || !other {
		t.Fatal("Select(c) did not leave c alone")
	}
	if !Select("p", "") || a || b || c || !other {
		t.Fatal("Select of the generic code left a tier on")
	}
	Reset("p")
	if !a || b || !c {
		t.Fatal("Reset did not restore what is supported")
	}
	var ran []string
	t.Run("all", func(t *testing.T) {
		TestAll(t, "p", func(t *testing.T) {
			switch {
			case a && !b && !c:
				ran = append(ran, "a")
			case !a && !b && c:
				ran = append(ran, "c")
			case !a && !b && !c:
				ran = append(ran, "generic")
			}
		})
	})
	if !slices.Equal(ran, []string{"a", "c", "generic"}) || !a || b || !c {
		t.Fatalf("TestAll ran %v and left %v %v %v", ran, a, b, c)
	}
}
