# make demo    the whole story on three simulated cars
# make check   lint, types and the tests that need neither data nor a second
# make test    lint, types and all tests
# make bare    the bare wheel in empty environments, one for each Python that is there: opens a copy and classifies
# make extras  each extra without the constraint file, to its first label
# make docs    documents and reference as pages under build/docs; checks links and docstrings
# make clean   removes what these made
#
# Everything is installed into .venv; nothing outside of the checkout is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo check test bare extras docs lint clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: $(STAMP)
	$(BIN)/variegate demo --force

test: $(STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

check: $(STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --quick

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy .

# The stamp is newer than what it was made from, so that a second run installs nothing.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	if pkg-config --exists tss2-esys 2>/dev/null; then $(BIN)/python -m pip install --quiet \
		--disable-pip-version-check --constraint constraints.txt --editable ".[tpm]"; fi
	touch $@

bare: $(STAMP)
	$(BIN)/python tests/bare_wheel.py

extras: $(STAMP)
	$(BIN)/python tests/bare_wheel.py --extras

docs: $(STAMP)
	$(BIN)/python docs/pages.py

clean:
	rm -rf $(VENV) build dist demo-output *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
