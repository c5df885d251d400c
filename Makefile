# Needs nothing but Python 3.10+ and make. Another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
PIP_FLAGS ?= --quiet --disable-pip-version-check
EXTRAS := train,eval,video,yolo,dev
WORKERS ?= 2

VENV := .venv
VENV_OLDEST := .venv-oldest
BIN := $(VENV)/bin
CHECKED := llava playground tests scripts

.DEFAULT_GOAL := help
.PHONY: help install demo demo-full demo-gpu test test-slow test-oldest lint types format clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 \t/p' $(MAKEFILE_LIST) | expand -t 22

# --- environments: made once, made again when a pin or a dependency changes ------------------------------------

$(VENV)/.installed: constraints.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing llava[$(EXTRAS)] into $(VENV) (once, about two minutes)"
	@begin=$$(date +%s); $(BIN)/python -m pip install $(PIP_FLAGS) -e ".[$(EXTRAS)]" -c constraints.txt && \
		echo "$$(($$(date +%s) - begin)) seconds" > $@

$(VENV_OLDEST)/.installed: constraints-oldest.txt pyproject.toml
	@test -x $(VENV_OLDEST)/bin/python || $(PYTHON) -m venv $(VENV_OLDEST)
	@echo "installing llava[$(EXTRAS)] into $(VENV_OLDEST) (once, about two minutes)"
	@begin=$$(date +%s); $(VENV_OLDEST)/bin/python -m pip install $(PIP_FLAGS) -e ".[$(EXTRAS)]" -c constraints-oldest.txt && \
		echo "$$(($$(date +%s) - begin)) seconds" > $@

install: $(VENV)/.installed  ## .venv with the package and its tools

# --- the first quarter of an hour ------------------------------------------------------------------------------

demo: $(VENV)/.installed  ## data, two trainings, evaluation and a report page: 12 minutes on 2 cores
	@$(BIN)/python -m playground.demo.run_demo $(DEMO_FLAGS)

demo-full: $(VENV)/.installed  ## the same with up to 25 minutes of training a format, and houses of several rooms
	@$(BIN)/python -m playground.demo.run_demo --profile full $(DEMO_FLAGS)

demo-gpu: $(VENV)/.installed  ## the same on one GPU: larger pictures, a larger model, houses of several rooms
	@$(BIN)/python -m playground.demo.run_demo --gpu $(DEMO_FLAGS)

# --- checks ----------------------------------------------------------------------------------------------------

lint: $(VENV)/.installed
	@$(BIN)/ruff check $(CHECKED)
	@$(BIN)/ruff format --check $(CHECKED)
	@$(BIN)/lint-imports --no-logo

types: $(VENV)/.installed
	@$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed  ## let ruff write the layout
	@$(BIN)/ruff check --fix $(CHECKED)
	@$(BIN)/ruff format $(CHECKED)

test: lint types  ## every check and test that CI runs
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow"

test-slow: $(VENV)/.installed  ## the tests left out of `make test`
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m "slow"

test-oldest: $(VENV_OLDEST)/.installed  ## the tests with torch 2.11 and transformers 5.17
	@OMP_NUM_THREADS=1 $(VENV_OLDEST)/bin/python -m pytest -q -n $(WORKERS) -m "not slow"

clean:  ## remove environments and caches; runs/ stays
	rm -rf $(VENV) $(VENV_OLDEST) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
