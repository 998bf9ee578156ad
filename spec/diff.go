package spec

// DiffJSON is what `phaseconv rotations diff --json` prints.
type DiffJSON struct {
	Equal bool       `json:"equal"`
	Keys  []DiffKey  `json:"keys"`
	Heads []DiffHead `json:"heads"`
	// Groups lists groups with other codes, where both sidecars have groups.
	Groups []DiffGroup `json:"groups,omitempty"`
	// Fold lists the tensors that the conversions edited differently; empty too
	// where one of the two has no fold.
	Fold []DiffTensor `json:"fold"`
}

// DiffKey is a key with different values.
type DiffKey struct {
	Key string `json:"key"`
	A   string `json:"a"`
	B   string `json:"b"`
}

// DiffHead is one KV head whose codes differ. Distances are |a - b| / max(|a|, |b|)
// with Euclidean norms, null where the shapes differ.
type DiffHead struct {
	Layer  int      `json:"layer"`
	Head   int      `json:"head"`
	SignsA int      `json:"signs_a"`
	SignsB int      `json:"signs_b"`
	GainA  float64  `json:"gain_a"`
	GainB  float64  `json:"gain_b"`
	Mean   *float64 `json:"mean"`
	Decode *float64 `json:"decode"`
	Encode *float64 `json:"encode"`
}

// DiffGroup is one group of a layer whose codes differ: as DiffHead, and how far apart the
// gains of its parts are. It is not there for groups of other parts; the keys tell those.
type DiffGroup struct {
	Layer     int      `json:"layer"`
	Group     int      `json:"group"`
	Parts     []string `json:"parts"`
	SignsA    int      `json:"signs_a"`
	SignsB    int      `json:"signs_b"`
	GainA     float64  `json:"gain_a"`
	GainB     float64  `json:"gain_b"`
	PartGains *float64 `json:"part_gains"`
	Mean      *float64 `json:"mean"`
	Decode    *float64 `json:"decode"`
	Encode    *float64 `json:"encode"`
}

// DiffTensor is one tensor that was edited differently.
type DiffTensor struct {
	Tensor   string   `json:"tensor"`
	Distance *float64 `json:"distance"`
}

// ChecksJSON is what `phaseconv rotations check --json` prints.
type ChecksJSON struct {
	OK     bool    `json:"ok"`
	Checks []Check `json:"checks"`
}
