# noa: `make demo` shows the whole life of a model; `make test` runs the tests. Both set up everything they need.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
BIN := .venv/bin
PYTEST_ARGS ?=
BENCH_ARGS ?=
CONFORMANCE_ARGS ?=
# Half as many again as cores: tests that wait for a server or a process leave theirs to others.
TEST_WORKERS ?= $(shell echo $$(( ($$(nproc) * 3 + 1) / 2 )))
PACKAGES := core registry conversion training serving flows cli

# It makes every import slow: the environment is compiled once at installation.
unexport PYTHONDONTWRITEBYTECODE
export BENTOML_DO_NOT_TRACK := True
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

.PHONY: help setup tools demo test check lint types frame wheel chaos fuzz bench bench-conversion bench-serving conformance conformance-compile docs clean

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

setup: ## Create .venv and install everything from the lock.
	@$(PYTHON) scripts/set_up.py

demo: setup ## Train, register, convert, promote, serve, retrain and roll back a real model (2 minutes).
	@$(BIN)/noa demo

tools: # What the tests run that is not in .venv: nginx, and KServe's client in an environment of its own.
	@$(PYTHON) scripts/set_up_kserve.py >/dev/null
	@PATH="$$PATH:/usr/sbin" command -v nginx >/dev/null || { \
		echo "test: installing nginx"; \
		as_root=$$([ $$(id -u) = 0 ] || echo sudo); \
		$$as_root apt-get update -q >/dev/null && \
		$$as_root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -q nginx >/dev/null; }

test: setup tools ## Run the test suite, with a sample of what chaos, fuzz, bench and conformance run.
	@echo "test: running the suite in $(TEST_WORKERS) processes"
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder \
		-m "not conformance and not chaos" $(PYTEST_ARGS)

lint: setup
	@echo "check: ruff lint"
	@$(BIN)/ruff check .
	@echo "check: ruff format"
	@$(BIN)/ruff format --check .

types: setup
	@echo "check: pyright strict (a minute or two)"
	@$(BIN)/pyright $(PACKAGES)

frame: setup
	@echo "check: import direction and the rest of the frame"
	@$(BIN)/python -m pytest -q tests/frame

wheel: setup
	@$(BIN)/python scripts/check_wheel.py

check: lint types frame test wheel ## Everything CI runs: lint, types, frame, tests, wheel.
	@echo "check: all green"

chaos: setup ## Kill whatever writes at every point, race it, fill every disk (half an hour).
	@echo "chaos: every point of every operation, every size of a full disk, and the tests marked chaos"
	@NOA_TEST_EVERY_POINT=1 $(BIN)/python -m pytest -n $$(nproc) --dist loadscope -v -m chaos $(PYTEST_ARGS)

fuzz: setup ## Send 100,000 requests of any kind to a server: schemathesis and mutated binary frames (half an hour).
	@echo "fuzz: every route, by its description and by mutated frames"
	@NOA_FUZZ_EXAMPLES=$${NOA_FUZZ_EXAMPLES:-8000} $(BIN)/python -m pytest -n $$(nproc) --timeout 7200 \
		tests/serving/test_serving_fuzz.py tests/serving/test_serving_fuzz_routes.py $(PYTEST_ARGS)

bench: setup ## Measure serving, training, registry and the demo; prints a table and writes JSON.
	@$(BIN)/python -m benchmarks

bench-conversion: setup ## Measure imported models against natively written ones, and the import itself.
	@$(BIN)/python -m benchmarks conversion --output benchmarks/results/conversion.json

bench-serving: setup ## Measure the server against all others that pip installs (half an hour; BENCH_ARGS=--quick: 6 minutes).
	@command -v cc >/dev/null && command -v h2load >/dev/null || { \
		echo "bench-serving: installing a C compiler and h2load"; \
		as_root=$$([ $$(id -u) = 0 ] || echo sudo); \
		$$as_root apt-get install -y -q gcc libc6-dev nghttp2-client >/dev/null; }
	@$(BIN)/python -m benchmarks.serving $(BENCH_ARGS)

conformance: setup ## Run the ONNX backend test suite through both importers, and every round trip of the converters.
	@echo "conformance: the backend test suite, compared with the record"
	@$(BIN)/python -m benchmarks.conformance --jobs $$(nproc)
	@echo "conformance: the tests of which the suite runs a sample"
	@$(BIN)/python -m pytest -n $$(nproc) --dist loadfile -m conformance $(PYTEST_ARGS)

conformance-compile: setup ## Run 26 real ONNX files under torch.compile, one at a time (an hour; goes on where it was stopped).
	@$(BIN)/python -m benchmarks.conformance.real_models --target torch --resume $(CONFORMANCE_ARGS)

docs: setup ## Build the documentation as a site in build/site.
	@$(BIN)/zensical build --strict --clean >/dev/null
	@echo "docs: build/site/index.html"

clean: ## Remove .venv, caches and build outputs; never a project's .noa folder.
	@rm -rf .venv dist build .cache .pytest_cache .ruff_cache .hypothesis benchmarks/results
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "clean: done"
