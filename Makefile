# `make run` and `make test` need Python 3.11 or newer, make, and a package registry; everything else is installed here.
PYTHON ?= python3
BIN := .venv/bin
COMPILE = $(BIN)/uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header --upgrade

.DEFAULT_GOAL := help
.PHONY: help setup run test lint type format bench lock clean

help:  ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: .venv/run.stamp  ## make .venv with what running needs

run: setup  ## run the embedded default experiment
	@$(BIN)/python -m kd.run $(ARGS)

test: .venv/dev.stamp  ## run the tests
	@$(BIN)/python -m pytest -n auto $(ARGS)

lint: .venv/dev.stamp  ## check style and formatting
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

type: .venv/dev.stamp  ## check types
	@$(BIN)/mypy

format: .venv/dev.stamp  ## rewrite the code in the house's format
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: .venv/dev.stamp  ## measure the speed of everything, write docs/performance.md (a quarter of an hour)
	@$(BIN)/python -m benchmarks.performance

lock: .venv/dev.stamp  ## resolve the dependencies anew (hashes, no host names)
	@$(COMPILE) --all-extras --group dev pyproject.toml -o requirements-dev.lock
	@$(COMPILE) -c requirements-dev.lock pyproject.toml -o requirements.lock
	@echo uv | $(COMPILE) -c requirements-dev.lock - -o requirements-uv.lock

clean:  ## remove what was built here; keeps outputs/
	@rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv installs hundreds of megabytes in half a minute; pip, with a pinned hash, only brings uv itself.
.venv/uv.stamp: requirements-uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else \
		f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@touch $@

.venv/run.stamp: .venv/uv.stamp requirements.lock
	@test -f .venv/dev.stamp || $(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements.lock
	@touch $@

.venv/dev.stamp: .venv/uv.stamp requirements-dev.lock
	@$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements-dev.lock
	@touch $@ .venv/run.stamp
