package convert

import (
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/internal/tiny"
)

// TestJointMetric: gradients are the metric where every layer has a backward pass; elsewhere
// queries are, and that is said, or the option is refused if it was asked for.
func TestJointMetric(t *testing.T) {
	for _, x := range []struct {
		gate, able, fisher bool
		says               string
	}{{false, true, true, ""}, {true, true, false, "a gate on the output of attention"}, {true, false, false, "a gate on the output of attention"}} {
		c := tiny.Open(t, "llama", tiny.Options{Seed: 1})
		if x.gate {
			c.Config.Layers[1].Gate = family.GateHead
		}
		o, joint, said := DefaultOptions(), DefaultJoint(), ""
		joint.IfAble = x.able
		o.Joint, o.Notice = &joint, func(s string) { said += s }
		err := o.settle(c)
		if !x.able {
			if err == nil || !strings.Contains(err.Error(), x.says) {
				t.Errorf("gradients of a layer with a gate: %v", err)
			}
			continue
		}
		if o.Joint.Fisher != x.fisher || !joint.Fisher || !strings.Contains(said, x.says) || x.says == "" && said != "" {
			t.Errorf("%+v: fisher %v, %q (%v)", x, o.Joint.Fisher, said, err)
		}
	}
}
