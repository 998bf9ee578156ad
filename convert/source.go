package convert

import (
	"fmt"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/verify/contract"
)

// checkOriginal refuses a model that was converted before. What a second conversion
// is measured against would be the first one, not the model that people know.
func checkOriginal(c *checkpoint.Checkpoint) error {
	if _, source, err := contract.Marker(c); err == nil {
		return fmt.Errorf("%s: the model is an artifact of phaseconv, made from a source with SHA-256 %s; convert that source",
			c.Path, source)
	}
	return nil
}
