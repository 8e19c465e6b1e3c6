# Two commands: `make demo` runs the whole chain on handwritten digits, `make test` runs the tests.
# PYTHON: the first of these that runs and has a supported version (a pyenv shim may exist and not run).
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.11; do \
  if $$p -c '$(FITS)' 2>/dev/null; then echo $$p; break; fi; done)
VENV := .venv
READY := $(VENV)/.ready
# The environment's commands come first in PATH. MLflow sends no telemetry.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Container images often set this; each process would then compile our package again.
export PYTHONDONTWRITEBYTECODE :=
PORT ?= 5000
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: help demo test test-slow test-all test-slurm ui docs install

help:
	@echo "make demo     the whole chain on handwritten digits: train, sample, evaluate, tabulate (4 to 8 minutes on two cores)"
	@echo "make test     the tests of a first look: every layer, on two cores"
	@echo "make test-all  all tests but those of Slurm: make test, then the slow ones"
	@echo "make test-slurm  the tests on a private two-node Slurm on this machine (Debian: installs it)"
	@echo "make ui       MLflow on http://127.0.0.1:$(PORT)"
	@echo "make docs     the documentation as a site, in site/"
	@echo "make install  create the virtual environment $(VENV) only"

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(FITS)' \
	  || { echo "error: Python 3.11 to 3.13 is needed; name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing into $(VENV): torch and its dependencies, several GB, a few minutes the first time."
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[workflow,test]'
	@touch $@

demo: $(READY)
	@snakemake digits || { status=$$?; [ -z "$$(ls .snakemake/locks 2>/dev/null)" ] || echo "If no other Snakemake runs\
	 in this folder, one was killed. Nothing is lost: $(VENV)/bin/snakemake --unlock && make demo"; exit $$status; }
	@cat results/digits/tables/*.md

# Two processes share the tests, each with one thread for torch. Some tests ask for two threads, which must wait without
# spinning: beside other work they would starve. The tests of a file stay together, with what they share, and files start
# in the order of tests/conftest.py.
TESTS := env OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(READY)
	@$(TESTS) -m "not slow"

test-slow: $(READY)
	@nice $(TESTS) -m slow

test-all: test test-slow

# Installs Debian's Slurm packages if they are missing and permissions allow.
test-slurm: $(READY)
	@command -v slurmctld munged >/dev/null || PATH=$$PATH:/usr/sbin command -v slurmctld munged >/dev/null \
	  || { $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y slurm-wlm munge; }
	@python -m pytest tests/slurm

ui: $(READY)
	@edm track sync --or-later --server http://127.0.0.1:$(PORT)
	@echo "MLflow starts in a few seconds. Open a link above: an experiment's evaluations, best first. Ctrl-C stops it."
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --host 127.0.0.1 --port $(PORT) --workers 1 \
	  --backend-store-uri sqlite:///mlruns/mlflow.db --artifacts-destination mlruns/artifacts

docs: $(READY)
	@python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@NO_MKDOCS_2_WARNING=1 mkdocs build --strict
	@echo "Site: site/index.html"
