# Needs Python 3.11 or newer and make, nothing else: the environment is made in .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-optimised check format bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/examples  ## trains on scikit-learn's digits by the hand-derived backward pass
	$(BIN)/python examples/digits.py

test: $(VENV)/test  ## laws, tables, mutants, examples, doctests
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# What computes, once more, compiled as users' programs are: make test leaves out what costs compiling time.
COMPUTES := laws mutants norm conv pooling recurrent losses optimizers backprop steps training watching diagnostics
test-optimised: $(VENV)/test  ## layers, losses, optimizers and training, optimised by the compiler
	JAXNN_OPTIMISED=1 $(BIN)/python -m pytest -n 2 --dist loadgroup $(COMPUTES:%=tests/test_%.py)

check: $(VENV)/test  ## formatter, linter, type checker
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(VENV)/test
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(VENV)/bench  ## step times beside the libraries that are installed; add PyTorch with pip for its column
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/recurrent.py
	$(BIN)/python benchmarks/lenet.py

$(VENV)/python.ok:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxnn needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/examples: pyproject.toml $(VENV)/python.ok
	$(INSTALL) -e '.[examples]'
	@touch $@

$(VENV)/test: pyproject.toml $(VENV)/python.ok
	$(INSTALL) -e '.[test,examples]'
	@touch $@

$(VENV)/bench: pyproject.toml $(VENV)/python.ok
	$(INSTALL) -e '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) out build *.egg-info
