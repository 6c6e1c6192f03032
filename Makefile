# Every target builds the virtual environment that it needs. PYTHON sets the interpreter, VENV the folder.
PYTHON ?= python3
VENV ?= .venv
FLOOR ?= .venv-floor
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev

.PHONY: demo test test-all test-floor lint docs build clean

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV); this takes one to three minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $(STAMP)

$(DEV): $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(DEV)

demo: $(STAMP)    ## the whole path on bundled text, offline
	HF_HUB_OFFLINE=1 $(BIN)/finetale demo

test: $(DEV) lint    ## lint, and all tests that run in minutes
	$(BIN)/python -m pytest

test-all: $(DEV) lint    ## the slow tests too
	$(BIN)/python -m pytest -m "slow or not slow"

test-floor:    ## unit tests with the lowest versions of the dependencies; downloads several GB if torch has no CPU build
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/pip install --quiet -c constraints-floor.txt torch
	$(FLOOR)/bin/pip install --quiet -c constraints-floor.txt -e ".[answers,datasets,export-gguf,export-onnx,formats,gguf,sentencepiece,tensorboard]" hypothesis nbclient ipykernel pytest pytest-timeout pytest-xdist
	HF_HUB_OFFLINE=1 $(FLOOR)/bin/python -m pytest tests/unit tests/invariant

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	MYPYPATH=tests $(BIN)/mypy --allow-untyped-calls --allow-subclassing-any benchmarks/*.py benchmarks/gpu/*.py recipes/*.py docs/generate.py
	$(BIN)/lint-imports

docs: $(STAMP)    ## write the generated pages again
	$(BIN)/python docs/generate.py

build: $(DEV)    ## sdist and wheel in dist/
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
