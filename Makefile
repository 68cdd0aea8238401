# Needs Python (3.11 or newer) and make; everything else is installed into .venv.
.DEFAULT_GOAL := help
.PHONY: help quickstart test check fuzz bench docs clean

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

# Two stamp files, each written last, so that an interrupted installation is taken up again.
INSTALLED := .venv/installed
INSTALLED_DEV := .venv/installed-dev

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1: \2/p' Makefile

quickstart: $(INSTALLED)  ## install what a user needs, then run all stages on the micro world (runs/quickstart)
	$(BIN)/lbgen quickstart

test: $(INSTALLED_DEV)  ## add the development tools, then run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(INSTALLED_DEV)  ## lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fuzz: $(INSTALLED_DEV)  ## change stored files at random: 25 times as many inputs as the tests take (about an hour)
	LBGEN_FUZZ=50000 $(BIN)/python -m pytest -n 2 tests/fuzz

bench: $(INSTALLED_DEV)  ## time and memory of one alignment step and of generation, on the CPU
	$(BIN)/python benchmarks/speed/align_step.py
	$(BIN)/python benchmarks/speed/generate.py --scheduler ddim --steps 12 --batch-size 24 --batch-sizes 8 24 48 --formats

docs: $(INSTALLED_DEV)  ## build the documentation into site/; a broken link is an error
	$(BIN)/zensical build --clean --strict

clean:  ## remove the environment and what tools left behind (runs/ stays)
	rm -rf .venv build dist site .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) -e '.[dev,docs]'
	touch $@
