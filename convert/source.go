package convert

import (
	"fmt"

	"github.com/phaseconv/phaseconv/verify/contract"
)

// checkSource refuses a model that was converted before, because what a second conversion is
// measured against would be the first one, and passes on what people should know of others.
func (j *job) checkSource() error {
	if _, source, err := contract.Marker(j.source); err == nil {
		return fmt.Errorf("%s: the model is an artifact of phaseconv, made from a source with SHA-256 %s; convert that source",
			j.source.Path, source)
	}
	if j.o.Notice != nil {
		for _, n := range j.source.Notes() {
			j.o.Notice(n)
		}
	}
	return nil
}
