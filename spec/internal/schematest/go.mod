module github.com/phaseconv/phaseconv/spec/internal/schematest

go 1.26.0

require (
	github.com/phaseconv/phaseconv v0.0.0
	github.com/santhosh-tekuri/jsonschema/v6 v6.0.3
)

require golang.org/x/text v0.14.0 // indirect

replace github.com/phaseconv/phaseconv => ../../..
