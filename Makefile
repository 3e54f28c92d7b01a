# Everything runs in .venv, which the first target that needs it creates: plain python3 (3.11 or newer) is enough.
PYTHON ?= python3
BIN := .venv/bin
MODULES := $(filter-out %.__init__ %.__main__,$(subst /,.,$(basename $(wildcard physnet/*.py physnet/integrators/*.py))))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all lint bench bench-all profile docs wheel clean

demo: .venv/installed
	$(BIN)/physnet train examples/digits_hopfield.yaml

test: lint
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

test-all: lint
	$(BIN)/python -m pytest -q -n 2 -m "slow or not slow"

lint: .venv/developing
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

bench: .venv/installed
	$(BIN)/python benchmarks/run.py

bench-all: .venv/installed
	$(BIN)/python benchmarks/run.py --all

profile: .venv/installed
	$(BIN)/python benchmarks/profile_step.py

docs: .venv/developing
	$(BIN)/pdoc physnet $(MODULES) --output-directory build/docs

wheel: .venv/developing
	rm -rf dist build/lib build/bdist.*
	$(BIN)/python -m build --wheel --no-isolation --outdir dist > /dev/null

clean:
	rm -rf .venv build dist *.egg-info

# The two files say that .venv holds what running, and what developing, needs.
.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable .
	touch $@

.venv/developing: .venv/installed
	$(PIP) --editable ".[dev]"
	touch $@
