# Needs Python 3.11 or newer and make, nothing else: the environment is made in .venv on first use, by the newest
# Python that is found on the PATH or among pyenv's versions, since only newer ones are given the newest JAX.
PYTHONS := 3.13 3.12 3.11
find = $(shell for version in $(1); do \
	for python in python$$version "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version.*/bin/python; do \
		"$$python" -c 'import ensurepip, venv' 2>/dev/null && echo "$$python" && exit; done; done)
PYTHON ?= $(or $(call find,$(PYTHONS)),python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

.PHONY: demo test test-all test-versions test-oldest test-newest test-next check format bench yardstick clean
.DELETE_ON_ERROR:

demo: $(VENV)/examples  ## trains on scikit-learn's digits by the hand-derived backward pass
	$(BIN)/python examples/digits.py

test: $(VENV)/test  ## laws, tables, mutants, doctests: the suite for every commit
	$(PYTEST) -m "not long"

# What computes, once more, compiled as users' programs are: make test leaves out what costs compiling time.
COMPUTES := laws norm conv pooling recurrent losses optimizers backprop steps diagnostics
test-all: test  ## that, what is long by nature, and what computes once more as the compiler optimises it
	$(PYTEST) -m long
	JAXNN_OPTIMISED=1 $(PYTEST) -m "not long" $(COMPUTES:%=tests/test_%.py)

test-versions:  ## the fast suite on both ends: Python 3.11 with JAX 0.10.0, Python 3.13 with the newest JAX
	@status=0; for end in oldest newest; do $(MAKE) --no-print-directory test-$$end || status=1; done; exit $$status

end = $(if $(call find,$(1)),$(MAKE) --no-print-directory test VENV=$(2) PYTHON="$(call find,$(1))" EXACTLY="$(3)", \
	{ echo "Python $(1) is missing: $(4) is not tested. It is looked for on the PATH and among pyenv's versions."; exit 1; })

test-oldest:
	@$(call end,3.11,.venv-oldest,jax==0.10.0 jaxlib==0.10.0,JAX 0.10.0)

test-newest:
	@$(call end,3.13,.venv-newest,,the newest JAX)

newest = $$($(BIN)/python -m pip index versions $(1) jax 2>/dev/null | sed -n 's/^jax (\(.*\))$$/\1/p')

test-next: $(VENV)/python.ok  ## the fast suite with the newest JAX that installs, pre-releases included: what comes
	@next=$(call newest,--pre); released=$(call newest,); \
	if [ "$$next" = "$$released" ]; then echo "JAX $$next is the newest, pre-releases included: nothing comes yet."; \
	else echo "JAX $$next, behind $$released:"; $(MAKE) --no-print-directory .venv-next/test VENV=.venv-next && \
	.venv-next/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --pre jax jaxlib && \
	$(MAKE) --no-print-directory test VENV=.venv-next; fi

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

yardstick: $(VENV)/bench  ## hashes, FLOPs, bytes and compile times of eight networks; AGAINST=commit compares
	$(BIN)/python benchmarks/yardstick.py $(AGAINST:%=--against %)

$(VENV)/python.ok:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxnn needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/examples: pyproject.toml $(VENV)/python.ok
	$(INSTALL) -e '.[examples]' $(EXACTLY)
	@touch $@

$(VENV)/test: pyproject.toml $(VENV)/python.ok
	$(INSTALL) -e '.[test,examples]' $(EXACTLY)
	@touch $@

$(VENV)/bench: pyproject.toml $(VENV)/python.ok
	$(INSTALL) -e '.[bench]' $(EXACTLY)
	@touch $@

clean:
	rm -rf .venv .venv-oldest .venv-newest .venv-next .jax_cache out build *.egg-info
