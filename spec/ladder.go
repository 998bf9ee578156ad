package spec

// The states of a rung.
const (
	RungPass         = "PASS"
	RungKill         = "KILL"
	RungInconclusive = "INCONCLUSIVE" // between the gates
	RungBlocked      = "BLOCKED"      // not run: what opens it did not pass
)

// Gates of the ladder: a rung passes up to the first number of a pair, and is killed beyond
// the second.
const (
	LadderReplay     = 1e-2 // relative L2 of a state replayed against its batch form
	LadderMax        = 0.10 // largest relative L2 of the sampled layers, held out
	LadderMaxKill    = 0.14
	LadderGap        = 0.04  // held-out error minus the fit text's
	LadderWorse      = 0.015 // what decay and the stored type may add
	LadderWorseKill  = 0.05
	LadderLogZ       = 0.15 // rms of log(z^/z)
	LadderNLL        = 0.02 // inflation of NLL, live
	LadderNLLKill    = 0.05
	LadderLogits     = 0.10 // largest relative L2 of a window's logits, live
	LadderLogitsKill = 0.25
	LadderMonotone   = 2 // layers whose errors fall at each step
)

// A Rung is one question of the ladder: can the attention of a layer be a finite state?
type Rung struct {
	ID       string `json:"id"`
	Parent   string `json:"parent"` // the rung, or the group of rungs of which one, must pass; empty for none
	Question string `json:"question"`
	Method   string `json:"method"`
	Success  string `json:"success"`
	Kill     string `json:"kill"`
	Opens    string `json:"opens"` // what runs next
}

// Texts of the gates that all rungs of RW1 share.
const (
	gate1 = "replay <= 0.01, errors fall at each step on all sampled layers, final max <= 0.10, gap <= 0.04"
	kill1 = "errors fall at each step on fewer than 2 layers, or final max > 0.14"
	gate3 = "NLL inflation <= 2 % and logit relative L2 <= 0.10, largest of the windows"
	kill3 = "NLL inflation > 5 % or logit relative L2 > 0.25"
)

// Ladder returns the rungs in the order in which they run; ladder.md explains them.
func Ladder() []Rung {
	return []Rung{
		{"RW0", "", "Does a recurrent state give what its features give without recurrence?", "codebook of keys, float32 state", "replay <= 0.01", "replay > 0.01", "RW1.0"},
		{"RW1.0", "RW0", "Do random features suffice?", "FAVOR+, features alone", gate1, kill1, "RW1.1; RW2 on PASS"},
		{"RW1.1", "RW0", "Does a series of exp suffice?", "second-order Taylor on leading directions, features alone", gate1, kill1, "RW1.2; RW2 on PASS"},
		{"RW1.2", "RW0", "Does a fitted codebook suffice?", "codebook of keys in the metric of queries, features alone", gate1, kill1, "RW1.3; RW2 on PASS"},
		{"RW1.3", "RW0", "Does an exact neighbourhood help?", "window 64 or a quarter of the context, 4 sinks, codebook", gate1, kill1, "RW1.4; RW2 on PASS"},
		{"RW1.4", "RW0", "Can a linear map correct the rest?", "RW1.3 and ridge regression from layer input and output", gate1, kill1, "RW1.5; RW2 on PASS"},
		{"RW1.5", "RW0", "Is it enough to keep the keys of the largest mass?", "window 32, 4 sinks, slots without merging", gate1, kill1, "RW1.6; RW2 on PASS"},
		{"RW1.6", "RW0", "Do merged slots suffice?", "window 32, 4 sinks, slots, cost prod", gate1, kill1, "RW1.7; RW2 on PASS"},
		{"RW1.7", "RW0", "Does a second-order count help?", "RW1.6 with kappa 0.5, cost by layer on fit text", gate1, kill1, "RW1.8; RW2 on PASS"},
		{"RW1.8", "RW0", "Can slots go where they are needed?", "RW1.7, slots by KV head for an error of 0.05 on fit text", gate1, kill1, "RW2 on PASS of any RW1"},
		{"RW2", "RW1", "Does the state bear its stored type and decay?", "best passing slots, F16 keys and values, decay 1/4096 or 1/(8 ctx), whichever is less",
			"RW1's final max + 0.015, replay <= 0.01, rms of log(z^/z) <= 0.15, errors fall on 2 layers", "RW1's final max + 0.05, or rms > 0.15", "RW2.1"},
		{"RW2.1", "RW2", "Does the state bear eight bits a number?", "RW2's slots, keys less their mean and values as 8-bit numbers with a scale each",
			"RW2's final max + 0.015, replay <= 0.01, rms of log(z^/z) <= 0.15, errors fall on 2 layers", "RW2's final max + 0.05, or rms > 0.15", "RW3"},
		{"RW3", "RW2", "Does the model bear it, one layer at a time?", "the smaller passing state of RW2 in the forward pass, each sampled layer alone", gate3, kill3, "RW3.1"},
		{"RW3.1", "RW3", "Does the model bear it in all layers?", "RW3's state in all layers, slots by layer and KV head as in RW1.8", gate3, kill3, ""},
	}
}

// LadderJSON is what `phaseconv ladder --json` and `phaseconv ladder show --json` print.
type LadderJSON struct {
	Tool     string         `json:"tool"`
	Until    string         `json:"until"`  // the last rung asked for
	Passed   bool           `json:"passed"` // it passed at every context
	Verdicts []string       `json:"verdicts"`
	Records  []LadderRecord `json:"records"` // by context, in the order of the rungs
}

// A LadderRecord is the result of one rung at one context: an artifact of its own.
type LadderRecord struct {
	Rung   Rung   `json:"rung"`
	Tool   string `json:"tool"`
	Inputs string `json:"inputs"` // digest of all that the result depends on
	Source Source `json:"source"`
	Fit    Text   `json:"fit"`
	Eval   Text   `json:"eval"`
	Ctx    int    `json:"ctx"`
	Status string `json:"status"`
	Reason string `json:"reason"`

	Window     int     `json:"window"`
	Sinks      int     `json:"sinks"`
	Queries    int     `json:"queries"` // of fit text, that masses are measured with
	Kappa      float64 `json:"kappa"`
	Saturation float64 `json:"saturation"`
	Decay      float64 `json:"decay"` // per token
	// Stored is the type of slots' keys and values: F32, F16, or Q8 for 8 bits with an F16 scale
	// for each vector; empty where there are no slots.
	Stored string `json:"stored"`

	Layers   []LadderLayer `json:"layers"`
	Live     []LadderLive  `json:"live"`
	FinalMax *float64      `json:"final_max"` // largest held-out error of the last step
	Gap      *float64      `json:"gap"`       // largest held-out minus fit error of the last step
	Monotone int           `json:"monotone"`  // layers whose errors fall at each step
	Replay   *float64      `json:"replay"`
	LogZ     *float64      `json:"log_z"` // rms of log(z^/z), largest of the layers
	Share    *float64      `json:"share"` // state over F16 cache, mean of the layers that are replaced
	Seconds  float64       `json:"seconds"`
}

// A LadderLayer is how well a state stands for the attention of one layer.
type LadderLayer struct {
	Layer int `json:"layer"`
	// Native says that the layer's own window is shorter than the context: its cache is finite
	// already, nothing was measured, and it counts for no gate.
	Native     bool         `json:"native"`
	Cost       string       `json:"cost"` // of merging slots: prod or ward; empty where none are merged
	WindowOnly *LadderStep  `json:"window_only"`
	Steps      []LadderStep `json:"steps"`
	Monotone   bool         `json:"monotone"`
	Replay     *float64     `json:"replay"`
	LogZ       *float64     `json:"log_z"`
	LogZMax    *float64     `json:"log_z_max"` // largest log(z^/z)
}

// A LadderStep is one size of the state.
type LadderStep struct {
	Size    float64 `json:"size"` // features or slots, mean of the KV heads
	Fit     float64 `json:"fit"`  // relative L2 error on fit text
	HeldOut float64 `json:"held_out"`
	Bytes   int     `json:"bytes"` // of the state, all KV heads
	Share   float64 `json:"share"` // of the layer's F16 cache at this context
	Slots   []int   `json:"slots"` // of each KV head; null for features
}

// A LadderLive compares a model some of whose layers run on a state with the model as it is.
type LadderLive struct {
	Layers       []int   `json:"layers"`
	NLLInflation float64 `json:"nll_inflation"`
	NLLErr       float64 `json:"nll_err"` // standard error of the paired difference, over the mean NLL
	Logits       float64 `json:"logits"`  // relative L2, largest of the windows
	LogitsStrict float64 `json:"logits_strict"`
	KLD          float64 `json:"kld"`
	SameTop      float64 `json:"same_top"`
	// CopyNLL and CopyLive are the NLL of text that repeats its first half, of the model as it is
	// and with the state: prose forgives lost retrieval, copying does not.
	CopyNLL      float64 `json:"copy_nll"`
	CopyLive     float64 `json:"copy_live"`
	Share        float64 `json:"share"`
	Status       string  `json:"status"`
	StrictStatus string  `json:"strict_status"` // by logits_strict instead of logits
}
