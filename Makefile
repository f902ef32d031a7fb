# Two commands do all set-up on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: quickstart results test lint install clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(shell grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

install: $(VENV)/installed

quickstart: install
	$(BIN)/longgame audit recipes/quickstart.yaml

# About two hours on two cores; what is finished is not run again. DATA_DIR=… adds the step on real data.
results: install
	$(BIN)/python -m studies.results run $(if $(DATA_DIR),--data-dir $(DATA_DIR))
	$(BIN)/python -m studies.results keep
	$(BIN)/python -m studies.results pages

test: install
	$(BIN)/python -m pytest -n auto

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs
