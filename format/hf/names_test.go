package hf

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

// put adds members at the end of a JSON object, as text.
func put(raw []byte, members string) []byte {
	raw = bytes.TrimRight(raw, " \n")
	return append(bytes.Clone(raw[:len(raw)-1]), (",\n" + members + "\n}")...)
}

// A key counts under its own name only: each key of the configuration is put in a
// second time, in capitals and with a capital first, with a value that would change
// the model or be refused, and nothing changes.
func TestKeysInAnotherCase(t *testing.T) {
	typ := reflect.TypeFor[config]()
	for _, model := range []string{"llama", "gemma3", "qwen3moe", "mistral-window", "llama-llama3"} {
		raw := edit(t, model, nil)
		want, err := ParseConfig(raw)
		if err != nil {
			t.Fatal(err)
		}
		for i := range typ.NumField() {
			name := typ.Field(i).Tag.Get("json")
			for _, other := range []string{strings.ToUpper(name), strings.ToUpper(name[:1]) + name[1:]} {
				for _, value := range []string{`7`, `true`, `"x"`, `{"factor": 9}`, `[1]`} {
					got, err := ParseConfig(put(raw, `"`+other+`": `+value))
					if err != nil || !reflect.DeepEqual(got, want) {
						t.Errorf("%s with %s: %s: %+v, %v", model, other, value, got, err)
					}
				}
			}
		}
	}
	scaled := edit(t, "llama", keys{"rope_scaling": keys{"rope_type": "linear", "factor": 2.0, "Factor": 4.0, "ROPE_TYPE": "yarn"}})
	if c, err := ParseConfig(scaled); err != nil || full(c).Factor != 2 || full(c).Scaling != "linear" {
		t.Errorf("inside rope_scaling: %+v, %v", c, err)
	}
}

// Of two equal keys Python takes the last, and so do we, whole.
func TestKeyTwice(t *testing.T) {
	raw := put(edit(t, "llama", keys{"rope_scaling": keys{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}),
		`"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2}`)
	c, err := ParseConfig(raw)
	if err != nil || full(c).Theta != 5e5 || full(c).Scaling != "linear" || full(c).LowFreqFactor != 0 {
		t.Errorf("%+v, %v", c, err)
	}
}

// Python writes NaN and infinities. They are read where they do not matter and
// refused, by the key, where they do.
func TestNotFinite(t *testing.T) {
	raw := edit(t, "llama", nil)
	want, err := ParseConfig(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, members := range []string{`"bad_words_ids": [0.0, Infinity]`, `"initializer_range": NaN`,
		`"task_specific_params": {"b": [-Infinity, {"c": NaN}]}`} {
		got, err := ParseConfig(put(raw, members))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", members, got, err)
		}
	}
	for _, key := range []string{"rope_theta", "rms_norm_eps", "num_hidden_layers", "max_position_embeddings", "vocab_size", "sliding_window",
		"bos_token_id", "tie_word_embeddings", "rope_scaling", "hidden_act"} {
		for _, value := range []string{"NaN", "Infinity", "-Infinity"} {
			_, err := ParseConfig(put(raw, `"`+key+`": `+value))
			if err == nil || !strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), value) {
				t.Errorf("%s %s: %v", key, value, err)
			}
		}
	}
	if _, err := ParseConfig(put(raw, `"rope_scaling": {"rope_type": "linear", "factor": Infinity}`)); err == nil || !strings.Contains(err.Error(), "factor: Infinity") {
		t.Errorf("inside rope_scaling: %v", err)
	}
}
