package verify

// Progress receives the steps of a long computation. done counts up to total.
type Progress func(step string, done, total int)

func (p Progress) of(step string) func(done, total int) {
	if p == nil {
		return nil
	}
	return func(done, total int) { p(step, done, total) }
}
