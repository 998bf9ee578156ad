package buildinfo

import "testing"

func TestFull(t *testing.T) {
	for want, b := range map[string]Build{
		"1.2.0":                           {Version: "1.2.0", Revision: "0123456789abcdef", Modified: true},
		"0.1.0-dev":                       {Version: "0.1.0-dev"},
		"0.1.0-dev+0123456789ab":          {Version: "0.1.0-dev", Revision: "0123456789abcdef"},
		"0.1.0-dev+0123456789ab.modified": {Version: "0.1.0-dev", Revision: "0123456789abcdef", Modified: true},
	} {
		if got := full(b); got != want {
			t.Errorf("%+v is called %q, want %q", b, got, want)
		}
	}
}
