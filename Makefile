# Outpace: `make demo` and `make test` need only Python 3.11-3.13 and make.

ifndef PYTHON
PYTHON := $(shell for python in python3.13 python3.12 python3.11 python3; do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { echo "$$python"; break; }; done)
endif

VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
MODEL ?= stories
METHODS ?= autoregressive,suffix,token-recycling,opt-tree,auto
CERTIFY ?=
WORKERS ?= 2
ARGS ?=
DOORS := tests/doors tests/server/test_ray.py tests/cli/test_batch_command.py
GPU_PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help demo test certify bench gpu mutants plugin doors catalogue docs serve-docs lint format types check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11-3.13 with venv was found. Install one, or name it: make $(MAKECMDGOALS) PYTHON=path" >&2; exit 2; }
	@echo "Creating $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv "$(VENV)"

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Outpace (once; PyTorch is a large download)"
	@$(INSTALL) .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the development tools (once)"
	@$(INSTALL) ".[dev]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-dev
	@echo "Installing the documentation tools (once)"
	@$(INSTALL) ".[docs]"
	@touch $@

demo: $(VENV)/.installed ## ask SmolLM2 (fetched once, 93 MB), or the shipped model, plainly and accelerated, and compare
	@$(BIN)/python examples/demo.py $(ARGS)

test: $(VENV)/.installed-dev ## run the tests on two cores
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

certify: $(VENV)/.installed-dev ## prove the guarantee of every method on the shipped model: make certify CERTIFY=suffix,rsd
	$(BIN)/outpace certify --model $(MODEL) $(if $(CERTIFY),--method $(CERTIFY),--all) $(ARGS)

bench: $(VENV)/.installed-dev ## measure speed beside transformers
	$(BIN)/outpace bench --model $(MODEL) --methods $(METHODS) --peers hf $(ARGS)

gpu: ## check and time everything on this machine's GPU, installing nothing: make gpu OUT=folder GPU_PYTHON=python3
	PYTHONPATH=src "$(GPU_PYTHON)" -m outpace.bench.gpu $(ARGS)

mutants: $(VENV)/.installed-dev ## show that each deliberate fault is caught
	OMP_NUM_THREADS=1 $(BIN)/python -m outpace.testing.mutants $(ARGS)

plugin: $(VENV)/.installed-dev ## install the example plug-in aside and run its contract tests
	@rm -rf build/plugin
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/plugin docs/plugins/outpace-example
	PYTHONPATH=build/plugin OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:cacheprovider docs/plugins/outpace-example/tests

doors: $(VENV)/.installed-dev ## install lm-eval and Ray aside, and run the tests that need them
	@$(BIN)/python -m venv build/doors
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > build/doors/paths
	@build/doors/bin/python -c 'import pathlib, site; pathlib.Path(site.getsitepackages()[0], "paths.pth").write_text(open("build/doors/paths").read())'
	@build/doors/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt ".[doors,scale]"
	PYTHONPATH=src OMP_NUM_THREADS=1 build/doors/bin/python -m pytest -p no:cacheprovider $(DOORS) $(ARGS)

catalogue: $(VENV)/.installed ## rewrite src/outpace/methods/catalogue.json from the method classes
	$(BIN)/python -m outpace.methods.catalogue

docs: $(VENV)/.installed-docs ## build the site into site/ (strict)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

serve-docs: $(VENV)/.installed-docs ## show the site while editing
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

lint: $(VENV)/.installed-dev ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev ## strict type check of src/
	$(BIN)/mypy

check: lint types test docs ## everything a change needs before review

clean: ## remove what the targets made, the environment included
	rm -rf "$(VENV)" build site .pytest_cache .mypy_cache .ruff_cache
