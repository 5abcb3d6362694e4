# Each target does its own set-up: `make demo`, `make test`, `make lab` work in a fresh copy of the project.
VENV ?= .venv
PYTHON ?= python3
# PyTorch's build for Linux includes CUDA; without it 3 GB are enough (docs/howto.md)
NEED_GB ?= 6
# of the demo; others than tiny and classic are downloaded first
MODEL ?= tiny
# more for pytest or uv: make test ARGS="-m 'not slow'"
ARGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: help demo test lint lint-js lab lock plugin clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1	/'

$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is: $$("$(PYTHON)" --version 2>&1)"; \
		echo "If you have one under another name: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' || { \
		echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@test -x $(BIN)/python || \
		"$(PYTHON)" -c 'import shutil, sys; sys.exit(shutil.disk_usage(".").free < $(NEED_GB) * 10**9)' || { \
		echo "$(NEED_GB) GB of disk space are needed here, and there is less. Without CUDA 3 GB are enough:"; \
		echo "see docs/howto.md, then make $(MAKECMDGOALS) NEED_GB=3"; exit 1; }
	@echo "Installing the tested packages into $(VENV): once, 2 to 15 minutes, up to $(NEED_GB) GB."
	@echo "pip first lists what it collects; at \"Installing collected packages\" it is silent for a minute or two."
	"$(PYTHON)" -m venv $(VENV)
	$(PIP) -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY)  ## pre-label the sample scene, in about a minute; MODEL=… takes another model
	@mkdir -p runs
	$(BIN)/papermill notebooks/prelabel.ipynb runs/demo.ipynb -p out_dir "$(CURDIR)/runs/demo" \
		-p source null -p aoi null -p model $(MODEL) --log-output --no-progress-bar
	@echo
	@echo "The run folder: $(CURDIR)/runs/demo"
	@echo "  review.qgz       open it in QGIS: imagery, pre-labels and tiles, ready for review"
	@echo "  prelabels.gpkg   the layer (also .geojson and .parquet)"
	@echo "  report.html      a page about the run; open it in a browser"
	@echo "The executed notebook: $(CURDIR)/runs/demo.ipynb"

test: $(READY)  ## run all tests, or those that ARGS="…" tells pytest to
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory lint-js

lab: $(READY) prelabel.ipynb  ## open your copy of the notebook in JupyterLab
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --ServerApp.root_dir="$(CURDIR)" \
		--LabApp.default_url=/lab/tree/prelabel.ipynb

# JupyterLab saves by itself: what is set by hand must not become the defaults of batch jobs.
# Made only if there is none, because it belongs to the user.
prelabel.ipynb:
	cp notebooks/prelabel.ipynb $@

# npx fetches the checker; the project itself needs no node
TSC := npx --yes -p typescript@5.9.3 tsc -p jsconfig.json

lint-js:  ## check the types of the widgets' JavaScript, if node is there
	@if command -v npx >/dev/null; then $(TSC); else echo "npx is not installed: the JavaScript is not checked"; fi

# Not after $(READY): a lock that cannot be installed must be made again, too. Pins that still hold
# are kept; ARGS=--upgrade takes the newest of all.
lock:  ## write constraints.txt again after a change of pyproject.toml
	@test -x $(BIN)/uv || { "$(PYTHON)" -m venv $(VENV) && $(PIP) uv; }
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11.0 --all-extras \
		--only-binary :all: --no-annotate --custom-compile-command "make lock" -o constraints.txt -q $(ARGS)

plugin:  ## write the QGIS plugin for reviewers, dist/sam_workbench_review.zip
	@"$(PYTHON)" qgis_plugin/build.py dist/sam_workbench_review.zip

clean:  ## remove the environment and caches; your runs/ stay
	rm -rf "$(VENV)" build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find workbench tests benchmarks docs training -name __pycache__ -prune -exec rm -rf {} +
