module phaseconv/spec/internal/schematest

go 1.26.0

require (
	github.com/santhosh-tekuri/jsonschema/v6 v6.0.3
	phaseconv v0.0.0
)

require golang.org/x/text v0.14.0 // indirect

replace phaseconv => ../../..
