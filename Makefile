# `make demo` and `make test` are all that a fresh machine needs: Python 3.11 or later with venv, and make.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: help install demo test clean

PYTHON ?= python3
# Options of `pip install torch`, for example --index-url of an index that serves another build.
TORCH_ARGS ?=
# Overrides for the demo's training, for example DEMO_ARGS='--train.max_steps 50'.
DEMO_ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed

help:
	@echo "make install   create .venv and install Longplay with its tools into it"
	@echo "make demo      generate data, train for a few minutes, evaluate, print the metrics"
	@echo "make test      lint, formatting, types, tests"
	@echo "make clean     remove demo/ and caches; .venv stays"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is not Python 3.11 or later; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "make: $(PYTHON) cannot create virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH_ARGS) torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	@if test -f demo/data/manifest.json; then echo "demo/data is prepared already"; \
	else $(BIN)/longplay prepare synthetic --out demo/data; fi
	$(BIN)/longplay train demo --data demo/data --run demo/run $(DEMO_ARGS)
	$(BIN)/longplay evaluate demo/run --split test --baseline
	@echo
	@echo "TensorBoard logs are in demo/run/tensorboard; look at them with:"
	@echo "  $(BIN)/tensorboard --logdir demo/run"

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest

clean:
	rm -rf demo build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
