# Each target does its own set-up: `make demo`, `make test`, `make lab` work on a fresh checkout.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint lab clean

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer with venv is needed (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "installing into $(VENV): some minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY)  ## pre-label the sample scene
	@mkdir -p runs
	$(BIN)/papermill notebooks/prelabel.ipynb runs/demo.ipynb -p out_dir "$(CURDIR)/runs/demo" \
		-p source null -p aoi null -p model classic --log-output --no-progress-bar
	@echo
	@echo "The run folder: $(CURDIR)/runs/demo"
	@echo "  review.qgz       open it in QGIS: imagery, pre-labels and tiles, ready for review"
	@echo "  prelabels.gpkg   the layer (also .geojson and .parquet)"
	@echo "  report.html      a page about the run; open it in a browser"
	@echo "The executed notebook: $(CURDIR)/runs/demo.ipynb"

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: $(READY) prelabel.ipynb  ## open your copy of the notebook in JupyterLab
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --ServerApp.root_dir="$(CURDIR)" \
		--LabApp.default_url=/lab/tree/prelabel.ipynb

# JupyterLab saves by itself: what is set by hand must not become the defaults of batch jobs.
# Made only where there is none, for it is the user's.
prelabel.ipynb:
	cp notebooks/prelabel.ipynb $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info

# npx fetches the checker; the project itself needs no node
TSC := npx --yes -p typescript@5.9.3 tsc -p workbench/widgets/jsconfig.json

.PHONY: lint-js
lint-js:  ## the types of the widgets' JavaScript, if node is installed
	@if command -v npx > /dev/null; then $(TSC); else \
		echo "npx is not installed: the JavaScript is not checked"; fi
