# Needs Python (3.11 or newer) and make; everything else is installed into .venv.
.DEFAULT_GOAL := help
.PHONY: help quickstart test check bench clean

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1: \2/p' Makefile

quickstart: $(INSTALLED)  ## install, then run the whole street on the micro world (runs/quickstart)
	$(BIN)/lbgen quickstart

test: $(INSTALLED)  ## install, then run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(INSTALLED)  ## lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(INSTALLED)  ## time and memory of one alignment step and of generation, on the CPU
	$(BIN)/python benchmarks/speed/align_step.py
	$(BIN)/python benchmarks/speed/generate.py --scheduler ddim --steps 12 --batch-size 24 --batch-sizes 8 24 48 --formats

clean:  ## remove the environment and what tools left behind (runs/ stays)
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Written last, so that an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
