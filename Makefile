# `make demo` and `make test` are all that a fresh machine needs: Python 3.11 or later with venv, and make.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: help install demo test docs slurm-packages clean

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
	@echo "make docs      build the documentation in site/"
	@echo "make slurm-packages   install what the tests' Slurm cluster needs, where that is possible"
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

test: install slurm-packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --maxschedchunk 1

# A strict build: a broken link, anchor or reference fails. Nothing is fetched from the network while building.
docs: install
	@$(BIN)/python -c 'import mkdocs, material, mkdocstrings' 2> /dev/null || \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site
	@echo "open site/index.html"

# As root on Debian or Ubuntu; elsewhere, or without a network, the tests that need them are skipped and say so.
SLURM_PROGRAMS := munged slurmctld slurmd sbatch slurmdbd mariadbd
slurm-packages:
	@PATH="$$PATH:/usr/sbin:/sbin"; missing=; \
	for program in $(SLURM_PROGRAMS); do command -v $$program > /dev/null || missing=1; done; \
	if test -z "$$missing"; then exit 0; fi; \
	if test "$$(id -u)" != 0 || ! command -v apt-get > /dev/null; then \
	  echo "make: no Slurm here and no right to install it: its tests will be skipped"; exit 0; fi; \
	export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
	{ apt-get update -qq && apt-get install -y -qq --no-install-recommends \
	  slurm-wlm munge slurmdbd mariadb-server; } > /dev/null 2>&1 \
	  || echo "make: Slurm's packages could not be installed: its tests will be skipped"

clean:
	rm -rf demo site build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
