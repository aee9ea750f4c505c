# Every target does its own set-up. Stamps in .venv record what is installed: .runtime (to use the package), .ui (the web
# page as well) and .dev (to work on the package). A stamp is written last, so the next `make` completes an interrupted
# install. It depends on pyproject.toml and constraints.txt, so the next `make` also installs a change of either.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# pip compiles what it installs one file at a time, which is half of the wait. So pip does not compile here; afterwards all
# cores do, without what is hardly ever imported: packages' test suites and the 500 model families of transformers. Python
# compiles a file that was left out when it first imports it.
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile -c constraints.txt
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/tests?/|/testing/|/transformers/models/(?!auto/)' $(VENV)/lib

# Tests run in several processes with one thread each: on small models that beats one process with many threads.
TEST_WORKERS ?= 2
PYTEST_ARGS ?= -n $(TEST_WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help quickstart ui test notebooks lint format docs bench conformance ecosystem clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(VENV)/.runtime ## train a small chat model from raw text on this machine
	@$(BIN)/chatgpt-hf quickstart

ui: ## chat with the quickstart's model in a web page
	@test -f runs/quickstart/results.json || { echo "There is no model in runs/quickstart yet: run make quickstart first."; exit 1; }
	@$(MAKE) --no-print-directory $(VENV)/.ui
	@$(BIN)/chatgpt-hf ui runs/quickstart

test: $(VENV)/.dev ## run the tests and the notebooks (PYTEST_ARGS="-k rope" replaces the options)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbmake $(PYTEST_ARGS)

notebooks: $(VENV)/.dev ## run the notebooks, and print what time each takes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbmake notebooks $(PYTEST_ARGS) --durations=0 --durations-min=1

lint: $(VENV)/.dev ## check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.dev ## fix what ruff can fix, format, and regenerate what is drawn from the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python tests/ecosystem_table.py # the links of docs/ecosystem.md to the tests' lines
	@$(BIN)/python docs/images/floors.py

docs: $(VENV)/.dev ## build the documentation into site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html; to search in it too: $(BIN)/python -m http.server --directory site"

bench: $(VENV)/.dev ## run a short version of every benchmark and compare its ratios with benchmarks/ratios.json
	@$(BIN)/python benchmarks/bench.py

conformance: $(VENV)/.dev ## run transformers' own model tests, and load models where this package is not installed
	@OMP_NUM_THREADS=1 $(BIN)/python conformance/run.py --workers $(TEST_WORKERS)
	@$(BIN)/python conformance/remote_code.py

ecosystem: $(VENV)/.dev ## run the tests with other libraries, and write docs/ecosystem.md from them
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m works_with --ecosystem=docs/ecosystem.md

clean: ## remove caches and build output (keeps .venv and runs)
	@rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# A half-made virtual environment has an interpreter but no pip; it is made again.
define make_venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "chatgpt-hf needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
endef

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(make_venv)
	@echo "Installing chatgpt-hf, PyTorch and the Hugging Face libraries into $(VENV), once: about 2 minutes plus the download."
	@$(PIP_INSTALL) -e .
	@$(COMPILE) || true # a package may hold a file for a newer Python
	@touch $@

$(VENV)/.ui: $(VENV)/.runtime
	@echo "Installing the web page's libraries into $(VENV), once."
	@$(PIP_INSTALL) -e '.[ui]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(make_venv)
	@echo "Installing chatgpt-hf, its libraries and the tools to test it into $(VENV), once: about 2 minutes plus the download."
	@$(PIP_INSTALL) -e '.[dev]'
	@$(COMPILE) || true
	@touch $(VENV)/.runtime $@
