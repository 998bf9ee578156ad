module github.com/phaseconv/phaseconv/scripts

go 1.26.0

require github.com/phaseconv/phaseconv v0.0.0

require golang.org/x/sys v0.49.0 // indirect

replace github.com/phaseconv/phaseconv => ../
