# Everyday commands of the repository. `make setup` needs only python3 (3.11 or newer) with venv; all else it installs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS_VENV := .venv-protos
LOCK_VENV := .venv-lock
UV_VERSION := 0.13.9

MEMBERS := services/api services/core services/runtime services/store services/executor services/gateway \
	services/lab services/cli predictor-service scheduler-service router-service

PYTEST_ARGS ?=
UP_ARGS ?=
BENCH_ARGS ?= line --json
LOCK_ARGS ?=

.PHONY: help setup setup-train serve test lint format protos protos-check protos-lint lock bench clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(VENV)/.installed  ## install everything into .venv

$(VENV)/.locked: requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.installed: $(VENV)/.locked $(MEMBERS:%=%/pyproject.toml)
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation $(MEMBERS:%=-e %)
	@touch $@

setup-train: $(VENV)/.train-locked  ## add what training and evaluating the prediction models needs

$(VENV)/.train-locked: requirements-train.lock $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -q --require-hashes -r requirements-train.lock
	@touch $@

serve: setup  ## start the local stack with a real model on 127.0.0.1:8080
	$(BIN)/paceline up $(UP_ARGS)

# Suites that live in the test's own process, nearly all of them, run side by side: half of the time they would take.
# Those that start whole stacks of processes keep all cores busy by themselves.
SIDE_BY_SIDE := services/core services/runtime services/store services/executor services/gateway services/lab \
	predictor-service scheduler-service router-service

test: setup-train  ## run the tests; with PYTEST_ARGS one pytest with these arguments
ifeq ($(strip $(PYTEST_ARGS)),)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE:%=--ignore=%)
else
	$(BIN)/python -m pytest $(PYTEST_ARGS)
endif

bench: setup  ## run a benchmark; BENCH_ARGS chooses it
	$(BIN)/paceline bench $(BENCH_ARGS)

lint: setup-train  ## style, types, protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if command -v npx >/dev/null; then sh protos/lint.sh; else echo "npx not found: buf lint left out"; fi

format: setup  ## reformat the code and order the imports
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

$(PROTOS_VENV)/.locked: protos/requirements.lock
	test -x $(PROTOS_VENV)/bin/python || $(PYTHON) -m venv $(PROTOS_VENV)
	$(PROTOS_VENV)/bin/python -m pip install --disable-pip-version-check -q --require-hashes -r protos/requirements.lock
	@touch $@

protos: $(PROTOS_VENV)/.locked  ## generate the stubs of services/api from protos/
	$(PROTOS_VENV)/bin/python protos/generate.py services/api/src/paceline

protos-check: $(PROTOS_VENV)/.locked  ## fail when the committed stubs differ from protos/
	$(PROTOS_VENV)/bin/python protos/generate.py --check services/api/src/paceline

lock:  ## pin requirements.in again; LOCK_ARGS=--upgrade takes newer versions
	test -x $(LOCK_VENV)/bin/uv || { $(PYTHON) -m venv $(LOCK_VENV) && $(LOCK_VENV)/bin/pip install -q uv==$(UV_VERSION); }
	for part in requirements requirements-train protos/requirements; do \
		$(LOCK_VENV)/bin/uv pip compile -q --no-config --universal --python-version 3.11 --generate-hashes \
			--no-header --no-annotate --no-emit-index-url --no-emit-find-links $(LOCK_ARGS) \
			$$part.in -o $$part.lock || exit 1; \
	done
	! grep -nE '://|^ *--(index|extra-index|find-links)' requirements.lock requirements-train.lock protos/requirements.lock

clean:  ## remove environments, caches and the state of local runs
	rm -rf $(VENV) $(PROTOS_VENV) $(LOCK_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
