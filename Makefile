# The commands of the project. `make demo` and `make test` set up what they need on their own.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
CODE := mosaic tests scripts $(wildcard jobs benchmarks)
BENCHMARKS := $(patsubst benchmarks/%.py,benchmarks.%,$(sort $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))))
# No model or data set is fetched from a hub unless a user asks for it.
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup clients demo test test-faults test-long lint bench clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: ## install the locked packages and mosaic into .venv (PYTHON=... names a Python 3.11)
	@scripts/setup.sh

clients: setup ## install what tests/clients runs into .venv-clients: foreign clients, at versions of their own
	@scripts/setup.sh --venv .venv-clients --lock requirements-clients.lock --packages-only --minimum-free-gb 2

demo: setup ## run the main job from start to end (KEEP=1 leaves the platform up)
	@$(BIN)/python -m mosaic.cli demo $(if $(KEEP),--keep)

test: lint clients ## lint, then all tests but the slow fault tests: those of one platform, and beside them all others
	@$(BIN)/python -m pytest -q -m "not faults and not long and not on_platform" > .tests-beside.log 2>&1 & beside=$$!; \
	trap "kill $$beside 2>/dev/null" INT TERM; \
	$(BIN)/python -m pytest -q -m "not faults and not long and on_platform"; failed=$$?; \
	wait $$beside || failed=$$?; cat .tests-beside.log; exit $$failed

test-faults: setup ## the slow tests that kill processes
	@$(BIN)/python -m pytest -q -m "faults and not long"

test-long: setup ## what takes minutes and is not in .ci/run: engines that die again and again, whole jobs, 2,000 requests
	@$(BIN)/python -m pytest -q -m long

lint: setup ## style, types, floors of the package, and the lock
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check --quiet $(CODE)
	@$(BIN)/mypy mosaic
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/check_lock.py

bench: setup ## run every benchmark, one after another
	@echo "benchmarks: $(if $(BENCHMARKS),$(BENCHMARKS),none)"
	@set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m $$name; done

clean: ## delete .venv, .venv-clients and what tools leave in the tree; data under ~/.mosaic stays
	@rm -rf .venv .venv-clients build mosaic.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
