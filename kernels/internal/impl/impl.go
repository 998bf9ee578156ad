// Package impl lists the implementations ("tiers") that each kernel package has
// for the running machine and lets a test run one body on every one of them.
//
// A kernel package registers one boolean per tier in its init functions and
// reads these booleans when it picks a function, so that a test can switch
// tiers off. Only tests may call Select and Reset: they are not synchronised.
package impl

import "fmt"

type entry struct {
	pkg, name string
	supported bool
	enabled   *bool
}

var entries []entry

// Register records the tier name of package pkg. *enabled says whether the
// machine supports it; Select and Reset write to it later. Tiers are registered
// from the best to the plainest; the generic Go code is always there and is not
// registered.
func Register(pkg, name string, enabled *bool) {
	entries = append(entries, entry{pkg, name, *enabled, enabled})
}

// List returns the names of the tiers registered for pkg, supported or not.
func List(pkg string) []string {
	var names []string
	for _, e := range entries {
		if e.pkg == pkg {
			names = append(names, e.name)
		}
	}
	return names
}

// Select switches off every tier of pkg but the named one. The empty name
// leaves only the generic code. It reports whether the named tier exists here;
// when it does not, nothing changes.
func Select(pkg, name string) bool {
	found := name == ""
	for _, e := range entries {
		if e.pkg == pkg && e.name == name {
			found = e.supported
		}
	}
	if !found {
		return false
	}
	for _, e := range entries {
		if e.pkg == pkg {
			*e.enabled = e.name == name
		}
	}
	return true
}

// Reset switches on every supported tier of pkg.
func Reset(pkg string) {
	for _, e := range entries {
		if e.pkg == pkg {
			*e.enabled = e.supported
		}
	}
}

// A Runner is the part of *testing.T and *testing.B that TestAll needs. Being
// generic over it keeps package testing out of the binaries that link kernels.
type Runner[T any] interface {
	Run(name string, f func(T)) bool
	Skipf(format string, args ...any)
	Cleanup(func())
}

// TestAll runs f once per tier of pkg, as a subtest named impl=NAME with only
// that tier enabled, and last with the generic code alone. Tiers that the
// machine lacks (or that GODEBUG or a build tag took away) show up as skipped.
func TestAll[T Runner[T]](t T, pkg string, f func(T)) {
	t.Cleanup(func() { Reset(pkg) })
	for _, name := range append(List(pkg), "") {
		label := name
		if name == "" {
			label = "generic"
		}
		t.Run(fmt.Sprintf("impl=%s", label), func(t T) {
			if !Select(pkg, name) {
				t.Skipf("%s: tier %s is not supported on this machine or is switched off", pkg, name)
			}
			f(t)
		})
	}
}
