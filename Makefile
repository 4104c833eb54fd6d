PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --constraint constraints.txt

.PHONY: help install demo test coverage lint docs bench clean

help:
	@echo "make demo     install, train on the built-in digits, attack, print the table"
	@echo "make install  everything for development, in $(VENV)"
	@echo "make test     install, then the tests"
	@echo "make coverage the tests with coverage, which take nearly twice as long"
	@echo "make lint     ruff, mypy, the layer contract and the links of the documentation"
	@echo "make docs     the documentation as a website, in build/site"
	@echo "make bench    the benchmark suites and their page: hours, resumable; python -m benchmarks --quick for minutes"
	@echo "make clean    remove $(VENV) and what tools left behind; runs/ stays"

# Stamps: a second call has nothing to do until the pins change.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing apd and what it needs (torch is the most of it) into $(VENV) ..."
	$(PIP) --no-compile --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing apd and the tools of development into $(VENV) ..."
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.runtime

install: $(VENV)/.dev

# What the demo imports is compiled when it is first used, which takes a quarter of the time of compiling all of torch.
demo: $(VENV)/.runtime
	PYTHONDONTWRITEBYTECODE= $(BIN)/apd demo --output runs/demo

# Where bytecode is forbidden, as in many containers, each worker and each process that a test starts would compile it all.
test: $(VENV)/.dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" --durations=5

coverage: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" --cov=src --cov-report=term --cov-fail-under=95

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open build/site/index.html, or run $(BIN)/mkdocs serve to have search too."

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks --page

clean:
	rm -rf $(VENV) build dist src/*.egg-info .coverage htmlcov .mypy_cache .ruff_cache .pytest_cache
