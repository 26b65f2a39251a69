# StackTopics: the commands that are promised. `make` prints this list.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
.DEFAULT_GOAL := help
LOCKED := requirements requirements-local requirements-dev requirements-bench
INSTALL = @echo "setting up (once) ..." && $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -r $< && touch $@

.PHONY: help demo up test test-all coverage lint format lock bench clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

demo: $(VENV)/.local ## set everything up and run the main job on the embedded local cloud
	@$(BIN)/python -m localcloud demo

up: $(VENV)/.local ## the local cloud until Ctrl-C; ARGS=--no-host leaves the functions to `func start`
	@$(BIN)/python -m localcloud up $(ARGS)

test: $(VENV)/.dev ## run the tests, on all cores and the Python of .venv
	@$(BIN)/python -m pytest -n auto --dist loadfile

test-all: $(VENV)/.dev ## run the tests that `make test` leaves out: the other Pythons, and downloads
	@$(BIN)/python -m pytest -n auto --dist loadgroup -m thorough

coverage: $(VENV)/.dev ## the tests with branch coverage of the product, as a table; fails below 90 %
	@rm -f .coverage .coverage.* && $(BIN)/coverage run -m pytest -q -n auto --dist loadfile
	@$(BIN)/coverage combine -q && $(BIN)/coverage report

lint: $(VENV)/.dev ## ruff, mypy --strict (tests and benchmarks too), one-way imports
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

format: $(VENV)/.dev ## format the code and fix what can be fixed
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lock: | $(VENV)/bin/uv ## compile requirements*.in into requirements*.txt; ARGS=--upgrade takes the newest versions
	@for name in $(LOCKED); do \
	  $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes $(ARGS) $$name.in -o $$name.txt || exit; done

bench: $(VENV)/.bench ## every benchmark, as tables; says first which and how long they take
	@$(BIN)/python -m bench

clean: ## remove what set-up and runs made
	rm -rf $(VENV) .tools .localcloud .import-dump .coverage*

$(VENV)/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "StackTopics needs Python 3.11 to 3.13; set PYTHON=... to one"; exit 1; }
	@$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install -q --disable-pip-version-check 'uv>=0.9,<1'

$(VENV)/.local: requirements-local.txt | $(VENV)/bin/uv
	$(INSTALL)

$(VENV)/.dev: requirements-dev.txt | $(VENV)/bin/uv
	$(INSTALL) $(VENV)/.local

$(VENV)/.bench: requirements-bench.txt | $(VENV)/bin/uv
	$(INSTALL) $(VENV)/.dev $(VENV)/.local
