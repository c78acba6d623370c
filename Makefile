# Needs Python >= 3.11 with its venv module, and nothing else: everything is installed into .venv on demand.
PYTHON ?= python3
# How many tests run at a time, each file in one process.
JOBS ?= 2
# Further options for `offramp serve`, `pytest` and the benchmark, e.g. make serve ARGS='--grpc-port 9001'
ARGS ?=

VENV := .venv
GENERATE_VENV := .venv-generate
FASHION := build/fashion-repository
# What was made before and still fits is not made again.
MAKE_FASHION := $(VENV)/bin/offramp make examples/fashion/demo.toml --no-evaluation --repository $(FASHION)
BUF := @bufbuild/buf@1.75.0
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev
GENERATOR := $(GENERATE_VENV)/.installed

.PHONY: help demo serve test fuzz check generate bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUNTIME) ## Serve a Fashion-MNIST teacher, smaller models and routes over them, measure all on real images, and leave
	$(MAKE_FASHION)
	$(VENV)/bin/python examples/fashion/demo.py --repository $(FASHION) $(ARGS)

serve: $(RUNTIME) ## Serve the demo's models until Ctrl-C
	$(MAKE_FASHION)
	$(VENV)/bin/offramp serve --model-repository $(FASHION) $(ARGS)

test: $(DEV) ## Run all tests
	$(VENV)/bin/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

fuzz: $(DEV) ## Fuzz HTTP/2 and gRPC for ten minutes; ARGS='--seconds 60 --target connection', or --help
	$(VENV)/bin/python tests/fuzz/fuzz.py $(ARGS)

check: $(DEV) $(GENERATOR) ## Lint, check types, and see that the generated code is up to date
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(GENERATE_VENV)/bin/python scripts/generate_protos.py --check
	@if command -v npx > /dev/null; then set -x; npx --yes $(BUF) lint; \
	else echo 'buf lint: left out, as there is no npx'; fi

generate: $(GENERATOR) ## Generate the protobuf modules from the .proto files
	$(GENERATE_VENV)/bin/python scripts/generate_protos.py

bench: $(RUNTIME) ## Measure the server beside a plain gRPC echo and beside bare compute
	$(VENV)/bin/python -m benchmarks.serve $(ARGS)

clean: ## Remove what these commands have made
	rm -rf $(VENV) $(GENERATE_VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(RUNTIME): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[server,compression]'
	touch $@

$(DEV): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	touch $(RUNTIME) $@

$(GENERATOR): scripts/generate-requirements.txt | $(GENERATE_VENV)/bin/python
	$(GENERATE_VENV)/bin/python $(PIP_INSTALL) -r scripts/generate-requirements.txt
	touch $@

$(VENV)/bin/python $(GENERATE_VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(patsubst %/bin/python,%,$@)
