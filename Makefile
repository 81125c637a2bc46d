# `make demo` and `make test` work on a fresh machine with Python 3.11 or later, its venv module, and make.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: help install demo test docs test-packages clean

PYTHON ?= python3
# Options of `pip install torch`, for example --index-url of an index that serves another build.
TORCH_ARGS ?=
# Overrides for the demo's training, for example DEMO_ARGS='--train.max_steps 50'.
DEMO_ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed

help:
	@echo "make install   create .venv and install Longplay and its development tools"
	@echo "make demo      generate data, train for a few minutes, evaluate, print the metrics"
	@echo "make test      lint, formatting, types, tests"
	@echo "make docs      build the documentation in site/"
	@echo "make test-packages   install the Debian packages that some tests need (as root)"
	@echo "make clean     remove demo/, site/, builds and caches, but not .venv"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is not Python 3.11 or later; choose one with make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "make: $(PYTHON) cannot create virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH_ARGS) torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,docs]'
	@touch $@
	@echo "installed; activate it with: source .venv/bin/activate"

demo: install
	@if test -f demo/data/manifest.json; then echo "demo/data exists"; \
	else $(BIN)/longplay prepare synthetic --out demo/data; fi
	$(BIN)/longplay train demo --data demo/data --run demo/run $(DEMO_ARGS)
	$(BIN)/longplay evaluate demo/run --split test --baseline
	@echo
	@echo "TensorBoard logs are in demo/run/tensorboard. Open them with:"
	@echo "  $(BIN)/tensorboard --logdir demo/run"

test: install test-packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n auto

# A strict build: a broken link, anchor or reference fails. Nothing is fetched from the network while building.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site
	@echo "open site/index.html, or http://localhost:8000 after: $(BIN)/python -m http.server --directory site"
	@echo "(only the second has the search)"

# Debian packages that some tests need: Slurm, a browser for TensorBoard, curl and a C++ compiler. Root installs them with
# apt-get. Without them the tests that need them are skipped; the end of the test run lists those tests and the reason.
# RUNLEVEL=1 keeps the packages from starting services.
test-packages:
	@PATH="$$PATH:/usr/sbin:/sbin"; missing=; \
	need() { local package=$$1 program; shift; \
	  for program in "$$@"; do if command -v $$program > /dev/null; then return; fi; done; \
	  missing="$$missing $$package"; }; \
	need munge munged; need slurm-wlm slurmctld; need slurmdbd slurmdbd; need mariadb-server mariadbd; \
	need chromium chromium chromium-browser google-chrome; need curl curl; need g++ g++; \
	if test -z "$$missing"; then exit 0; fi; \
	if test "$$(id -u)" != 0 || ! command -v apt-get > /dev/null; then \
	  echo "make: the tests that need these packages are skipped, as only root can install them:$$missing"; exit 0; fi; \
	echo "make: installing$$missing"; \
	export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
	apt-get update -qq > /dev/null 2>&1 || true; \
	for package in $$missing; do \
	  apt-get install -y -qq --no-install-recommends $$package > /dev/null 2>&1 || \
	  echo "make: $$package could not be installed; the tests that need it are skipped"; done

clean:
	rm -rf demo site build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
