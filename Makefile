# Needs Python 3.11 or newer with pip and venv, and make; everything else is installed into .venv.

PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo judge miniature test test-slow test-oldest lint format clean

help:
	@echo "make setup     create .venv and install stepalign with its tools, if not done yet"
	@echo "make demo      align the miniature model            ARGS='--help' shows the options"
	@echo "make judge     train the miniature's judge          ARGS='--output runs/judge'"
	@echo "make miniature make the miniature from nothing      ARGS='--output build'"
	@echo "make test      run the tests                        ARGS='-k sampler' picks some, ARGS='-m gpu' those for a GPU"
	@echo "make test-slow runs the tests that take minutes: kills at every moment, several processes"
	@echo "make test-oldest runs the tests with the oldest versions that pyproject.toml allows, in .venv-oldest"
	@echo "make lint      check format, style, types and the direction of imports"
	@echo "make format    fix format and style"
	@echo "make clean     remove caches and build products; .venv and runs stay"

setup: $(STAMP)

# No stamp means an install that never finished: installing again repairs it, in a new .venv if the old one is broken.
# hatchling comes first, and the build runs without isolation, because constraints do not reach an isolated build with
# every pip: -c never did, and PIP_CONSTRAINT stopped doing so when pip gained --build-constraint.
$(STAMP): $(BIN)/python pyproject.toml constraints.txt
	@rm -f $@
	@$(BIN)/python -c 'import pip, $(RECENT)' 2>/dev/null || { $(CREATE); }
	$(INSTALL) hatchling
	$(INSTALL) --no-build-isolation -e '.[dev]'
	@touch $@

$(BIN)/python:
	@$(CREATE)

RECENT = sys; sys.exit(sys.version_info < (3, 11))
CREATE = $(PYTHON) -c 'import $(RECENT)' 2>/dev/null || { \
	    echo "stepalign needs Python 3.11 or newer, which $(PYTHON) is not: `$(PYTHON) --version 2>&1`" >&2; \
	    echo "Name another: make setup PYTHON=python3.12" >&2; \
	    exit 1; }; \
	echo $(PYTHON) -m venv --clear $(VENV); $(PYTHON) -m venv --clear $(VENV)

demo: setup
	$(BIN)/stepalign demo $(ARGS)

judge: setup
	$(BIN)/stepalign train-judge spm-miniature $(ARGS)

miniature: setup
	$(BIN)/python -m stepalign.miniature.build $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not gpu and not hub" $(ARGS)

# The lower bounds of pyproject.toml as pins. Old versions of libraries warn of what new ones changed: only there,
# warnings are no errors. On Linux torch's ordinary build brings CUDA: PIP_EXTRA_INDEX_URL as for `make setup`.
LOWEST = import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
    print(*(need.replace(">=", "==") for need in project["dependencies"] + project["optional-dependencies"]["dev"]), sep="\n")
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -c '$(LOWEST)' > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check hatchling
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check -c $(OLDEST)/constraints.txt --no-build-isolation -e '.[dev]'
	$(OLDEST)/bin/python -m pytest -o filterwarnings=default $(ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
