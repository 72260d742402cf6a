# `make demo` and `make test` set everything up on a fresh machine with Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint clean help

help:
	@echo "make demo   plan, show, emit and train a small GPT on 4 local ranks"
	@echo "make test   linters, type checker, import contracts and all tests"
	@echo "make lint   the same without the tests"
	@echo "make clean  remove the virtual environment and caches"

# Rebuilt when what to install changes, not on every call.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-e '.[test]' -c constraints.txt
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict autopar
	$(BIN)/lint-imports

# Two processes, each with one thread for torch: tests that start ranks in one of them, by turns.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist
