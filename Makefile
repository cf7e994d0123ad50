# make test: everything that must hold on main, from nothing, in one command.
.PHONY: test test-core test-long format lint benchmark

test:
	scripts/require-packages test
	scripts/test

test-core:
	DELUGEFS_CORE_ONLY=1 swift test --scratch-path .build/core

test-long:
	scripts/require-packages test
	DELUGEFS_TEST_LONG=1 scripts/test

format:
	swift format -i -r --configuration .swift-format Package.swift Sources Tests

lint:
	swift format lint --strict -r --configuration .swift-format Package.swift Sources Tests

benchmark:
	scripts/require-packages test
	Benchmarks/run
