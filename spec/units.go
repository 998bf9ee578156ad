package spec

// UnitsJSON is what `phaseconv convert --plan --json` and `--unit i/N --json`
// print: how the fitting is divided among processes.
type UnitsJSON struct {
	Work   string `json:"work"` // base name of the folder that they share
	Layers int    `json:"layers"`
	Of     int    `json:"of"` // units in all
	Units  []Unit `json:"units"`
}

// Unit is the work of one process.
type Unit struct {
	Unit   int         `json:"unit"` // counted from 1
	Layers []UnitLayer `json:"layers"`
}

// UnitLayer is one layer of a unit.
type UnitLayer struct {
	Layer int    `json:"layer"`
	File  string `json:"file"`
	// There: the file was there before.
	There bool `json:"there"`
}
