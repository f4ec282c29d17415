# `make demo` and `make test` are all that a newcomer needs; `make` lists the rest.
#
# Each command first builds the virtual environment that it needs in $(VENV). It builds it
# again only if pyproject.toml or constraints.txt has changed.

VENV ?= .venv
# The number of test workers. Other pytest options go into PYTEST_ADDOPTS.
JOBS ?= 2
# Arguments for the command of `make demo`, for instance ARGS="seed=1 name=demo-1".
ARGS ?=

BIN := $(VENV)/bin

# The first Python that is new enough, unless the caller names one.
is_new_enough = -c 'import sys; sys.exit(sys.version_info < (3, 11))'
version = -c 'import sys; print("%d.%d" % sys.version_info[:2])'
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" $(is_new_enough) 2>/dev/null && { echo "$$p"; break; }; done)
else ifeq (,$(filter clean help lock,$(MAKECMDGOALS)))
ifneq (,$(wildcard $(VENV)/.created))
ifneq ($(shell "$(PYTHON)" $(version)),$(shell $(BIN)/python $(version)))
$(error $(VENV) holds Python $(shell $(BIN)/python $(version)), not the version of PYTHON=$(PYTHON): run "make clean" first, or choose another directory with VENV=)
endif
endif
endif

PYTEST := JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
LOCK := constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-all lint format docs lock clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-run  ## unlearn with the bundled model: takes about a minute on two cores
	$(BIN)/python -m pmc_jax.train $(ARGS)

# Without its fusion emitters, XLA compiles the small functions of the tests sooner. The slow tests
# run what users run.
test: $(VENV)/.installed-test  ## run the fast tests
	XLA_FLAGS="$$XLA_FLAGS --xla_cpu_use_fusion_emitters=false" $(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-test  ## run the slow tests only
	$(PYTEST) -m slow

test-all: $(VENV)/.installed-test  ## run every test
	$(PYTEST)

lint: $(VENV)/.installed-dev  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs  ## build the documentation into site/
	PATH="$(abspath $(BIN)):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# run, test and dev each contain the one before, so installing one marks the smaller ones as done.
$(VENV)/.installed-run: $(VENV)/.created pyproject.toml $(LOCK)
	$(call install,.)
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created pyproject.toml $(LOCK)
	$(call install,.[test])
	@touch $(VENV)/.installed-run $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml $(LOCK)
	$(call install,.[dev])
	@touch $(VENV)/.installed-run $(VENV)/.installed-test $@

$(VENV)/.installed-docs: $(VENV)/.created pyproject.toml $(LOCK)
	$(call install,.[docs])
	@touch $@

define install
@echo "Installing $(1) into $(VENV): a minute or two, once."
@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(LOCK) -e '$(1)'
endef

$(VENV)/.created:
	@test -n "$(PYTHON)" || { \
		echo "error: no Python 3.11 or newer was found; install one, or name it: make PYTHON=/path/to/python" >&2; \
		exit 2; }
	@command -v "$(PYTHON)" >/dev/null || { echo "error: PYTHON=$(PYTHON) was not found" >&2; exit 2; }
	@"$(PYTHON)" $(is_new_enough) || { \
		echo "error: $(PYTHON) is $$("$(PYTHON)" --version 2>&1); pmc_jax needs Python 3.11 or newer" >&2; \
		exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $(PYTHON) has no venv module; install it (on Debian and Ubuntu: apt install python3-venv)" >&2; \
		exit 2; }
	@"$(PYTHON)" -m venv "$(VENV)"
	@touch $@

lock:  ## resolve the newest versions and pin them in constraints.txt
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && \
	"$(PYTHON)" -m venv "$$tools" && \
	"$$tools/bin/pip" install --quiet --disable-pip-version-check '.[dev,docs]' && \
	{ sed -n '/^#/p' $(LOCK); "$$tools/bin/pip" freeze --exclude pmc_jax \
		| sed -E '/^(nvidia|cuda|triton)/d; s/\+[a-z0-9.]+$$//' | sort -f; } > "$$tools/lock" && \
	cp "$$tools/lock" $(LOCK) && echo "Wrote $(LOCK)."

clean:  ## remove the environment and build products, but not runs/
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
