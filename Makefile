# Two commands do all set-up on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
# Pure computation: these tests load no model and start no process.
QUICK := tests/invariants tests/metrics tests/quadratic tests/selection tests/test_cli.py tests/test_recipe.py \
	tests/test_registry.py tests/test_seeding.py

.PHONY: quickstart results check quick test test-all lint docs install clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(shell grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m compileall -q src  # as pip does for what it copies: hundreds of tests start a process
	touch $@

install: $(VENV)/installed

quickstart: install
	$(BIN)/longgame audit recipes/quickstart.yaml

# About two hours on two cores; finished trials are not run again. DATA_DIR=… adds the step on real data.
results: install
	$(BIN)/python -m studies.results run $(if $(DATA_DIR),--data-dir $(DATA_DIR))
	$(BIN)/python -m studies.results keep
	$(BIN)/python -m studies.results pages

# While you work: style, types and the quick tests, in about a minute.
check: install
	$(MAKE) --jobs=2 lint quick

quick: install
	$(PYTEST) -q -m "not slow" $(QUICK)

# Before you push, and in CI: everything but the tests marked slow.
test: install
	$(PYTEST) -m "not slow"

# The slow tests, too: studies, benchmarks, and what takes more than ten seconds. Run it before a release.
test-all: install
	$(PYTEST)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site: build/site/index.html, strictly (a broken link is an error).
docs: install
	$(BIN)/python -m studies.site

clean:
	rm -rf $(VENV) runs build
