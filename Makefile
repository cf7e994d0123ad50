# make test: everything that must hold, from nothing, in one command.
.PHONY: test test-core test-long format lint benchmark

test:
	scripts/require-packages test
	scripts/test

# Volume and Simulation alone: no dependency, no root.
test-core:
	scripts/test-core

# Full sizes and more seeds; adds a row to docs/testing.md.
test-long:
	scripts/require-packages test
	DELUGEFS_TEST_LONG=1 scripts/test

format:
	swift format -i -r --configuration .swift-format Package.swift Sources Tests

lint:
	swift format lint --strict -r --configuration .swift-format Package.swift Sources Tests

benchmark:
	scripts/require-packages benchmark
	Benchmarks/run
