# Each target says what it does after "##"; `make help` lists them.
PYTHON ?= python3
PYTEST_ARGS ?= -n 2
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help run test test-services check lint format types bench clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

run: $(VENV)/requirements.stamp ## Start everything on this machine; Ctrl-C ends it
	@exec $(PY) manage.py up

test: $(VENV)/requirements-dev.stamp ## Run the whole suite on SQLite and memory
	@$(PY) -m pytest $(PYTEST_ARGS)

test-services: $(VENV)/requirements-dev.stamp ## Run the whole suite on PostgreSQL and Redis
	@$(PY) -m tests.services $(PYTEST_ARGS)

check: lint types test ## Lint, types, tests: what a change must pass

lint: $(VENV)/requirements-dev.stamp ## Rules and layout of the sources
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

format: $(VENV)/requirements-dev.stamp ## Lay the sources out
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

types: $(VENV)/requirements-dev.stamp ## mypy --strict over all of our code
	@$(VENV)/bin/mypy

bench: $(VENV)/requirements-dev.stamp ## Measure speed and memory (docs/performance.md)
	@$(PY) -m bench

clean: ## Remove what can be made again; data in var/ stays
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Baton needs Python 3.11 or later: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@echo "Making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/requirements.stamp: requirements.txt | $(VENV)/bin/python
	@echo "Installing requirements.txt ..."
	@$(PIP) -r requirements.txt
	@touch $@

$(VENV)/requirements-dev.stamp: requirements-dev.txt requirements.txt | $(VENV)/bin/python
	@echo "Installing requirements-dev.txt ..."
	@$(PIP) -r requirements-dev.txt
	@touch $@ $(VENV)/requirements.stamp
