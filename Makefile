# All set-up happens here: each target makes the virtual environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Python compiles what a program imports when it first does, and keeps it; compiling all of torch here takes a minute.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt
# Two test files at a time, a thread each: as fast as two cores go, without waiting for one another's threads. Tests start
# many programs, each of which would compile the libraries again (20 s) where the environment forbids to keep that.
TEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help quickstart notebooks test test-all lint format benchmark benchmark-short clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; run make PYTHON=python3.11 (or newer)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.quickstart: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[quickstart]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.quickstart $@

quickstart: $(VENV)/.quickstart ## Train, evaluate and search offline on two CPU cores (about 9 minutes, the install included)
	HF_HUB_OFFLINE=1 $(BIN)/python -m splade_lit.fit --config experiments/quickstart.yaml --overwrite true
	HF_HUB_OFFLINE=1 $(BIN)/python -m splade_lit.search --model runs/quickstart/model --corpus docstrings --limit 500 --top 3 \
		"draw random samples from a normal distribution"

$(VENV)/.notebooks: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[quickstart,notebooks]'
	@touch $(VENV)/.quickstart $@

notebooks: $(VENV)/.notebooks ## Open the notebooks that look into a model
	$(BIN)/jupyter lab notebooks

lint: $(VENV)/.dev ## Check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Mend what the style check can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint ## Run lint, types, import rules and all tests but the slow ones
	$(TEST) -m "not slow"

test-all: lint ## Run every test, the slow ones too
	$(TEST)

$(VENV)/.benchmark: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[benchmark]'
	@touch $(VENV)/.quickstart $@

benchmark: $(VENV)/.benchmark ## Measure against sentence-transformers (an hour or more); writes bench.json
	$(BIN)/python scripts/benchmark --output bench.json

benchmark-short: $(VENV)/.benchmark ## The same in about 5 minutes
	$(BIN)/python scripts/benchmark --short --output bench.json

clean: ## Remove the virtual environment and what tools left behind (runs/ stays)
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist *.egg-info
