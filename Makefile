# The targets create .venv when it is missing or when pyproject.toml or constraints.txt have changed.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
JOBS ?= 2
ROUNDS ?= 5

USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.10 python3; do \
	"$$python" -c '$(USABLE)' 2>/dev/null && echo "$$python" && break; done)

.PHONY: help setup demo test soak bench bitstreams lint fmax clean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## create .venv with the pinned versions

demo: $(STAMP) ## generate an accelerator and run the demo model on it, checked bit for bit
	$(BIN)/moe-hw demo

test: lint ## ruff, mypy and all tests
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

soak: $(STAMP) ## the random tests with fresh seeds, ROUNDS=5 times
	for round in $$(seq $(ROUNDS)); do \
		$(BIN)/python -m pytest -q -n $(JOBS) $$(grep -rlE 'run_bench|random_seed' tests --include='test_*.py') || exit; \
	done

bench: $(STAMP) ## full-size layers of real models against the recorded baseline; takes minutes
	$(BIN)/python -m pytest -m bench -s

bitstreams: $(STAMP) ## bitstreams of the open boards in build/, over three seeds each; takes an hour
	for board in ulx3s-85f ecpix5-85f; do $(BIN)/moe-hw build --board $$board build/$$board || exit; done

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

fmax: $(STAMP) ## speed and resources of each block alone on an ECP5; BLOCKS="post row" for some of them
	$(BIN)/python -m rtl_gen.fmax $(BLOCKS)

clean: ## remove .venv and everything that was built
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch alone comes first: so a local CPU wheel is taken and no resolver is tempted by a CUDA build.
$(STAMP): pyproject.toml constraints.txt
	@python="$(PYTHON)"; [[ -n "$$python" ]] && "$$python" -c '$(USABLE)' 2>/dev/null || { \
		echo "error: expected Python 3.10 or newer with venv, got '$$python';" \
			"install it (Debian: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python" >&2; \
		exit 3; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install torch==2.13.0
	$(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt -e '.[test]'
	@touch $@
