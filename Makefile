# Every target first builds .venv from pyproject.toml and constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete

# Files that exist: an empty list must not fail.
NOTEBOOKS := $(wildcard notebooks/*.ipynb notebooks/sweeps/*.ipynb)

# TensorFlow's C++ start-up messages say nothing that a reader here can act on.
export TF_CPP_MIN_LOG_LEVEL ?= 3

.DEFAULT_GOAL := help
.PHONY: help demo lab paper test lint docs bench endurance publish clean $(VENV)

help:  ## print this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: $(STAMP)  ## run the notebooks on real photographs: tables, figures
	$(BIN)/python -m cwr_utils demo

# From here, not from `notebooks`: README, results and figures can be opened there.
lab: $(STAMP)  ## open JupyterLab with the first notebook; ARGS="--no-browser"
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_prepare_data.ipynb \
	  $(ARGS)

# What is given on the command line reaches the program as it is, spaces included.
paper: $(STAMP)  ## the paper's tables beside ours: DATASET=... NETWORK=...
	@$(BIN)/python -m cwr_utils paper --dataset "$(DATASET)" --network "$(NETWORK)" \
	  --data-root "$(DATA_ROOT)" --whitening "$(WHITENING)" \
	  --whitening-root "$(WHITENING_ROOT)" --weights "$(WEIGHTS)" \
	  --protocol "$(PROTOCOL)" $(if $(JOBS),--jobs "$(JOBS)")

test: $(STAMP)  ## run the test suite
	$(BIN)/python -m pytest -m "not slow"

lint: $(STAMP)  ## check style, types and stripped notebooks; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(if $(NOTEBOOKS),$(BIN)/nbstripout --keep-id --verify $(NOTEBOOKS))

docs: $(STAMP)  ## build the site, docs/_build/html/index.html
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html $(ARGS)

bench: $(STAMP)  ## time two ways of each step, into results/runs/benchmarks
	$(BIN)/python -m pytest tests/benchmarks --benchmark-enable \
	  --benchmark-only --timeout 0

endurance: $(STAMP)  ## 16 minutes of kills, full disks and damaged files
	$(BIN)/python tests/endurance

publish: $(STAMP)  ## rerun the demo (or take NAMES) and copy it to where git tracks it
	$(BIN)/python -m cwr_utils publish $(NAMES)

clean:  ## delete .venv and caches of tools; keep photos, stores and results
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis .benchmarks *.egg-info
	find cwr_utils tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV): $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "Python 3.11, 3.12 or 3.13 is needed; \`$(PYTHON)\` is" \
	    "$$($(PYTHON) --version 2>&1 || true). Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments." \
	    "On Debian and Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }
	@echo "Building $(VENV): about 3.5 GB on disk, some minutes on a slow line ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@
