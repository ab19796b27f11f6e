# Two commands: `make demo` and `make test`. Each sets up what it needs, once, and again when
# pyproject.toml or the pins change. An environment counts as made only when its stamp stands in it.

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
# Pinned, so that pip takes no newer one: on many machines that is a download of several GB.
TORCH ?= torch==2.13.0

VENV = .venv
# The packages that d2l 1.0.3 pins, and those pinned beside them, are for Python 3.11.
OLD = .venv-d2l
OLD_PYTHON := $(shell python3.11 -c '' 2>/dev/null && echo python3.11)
OLD_PINS = tests/requirements-d2l.txt tests/constraints-d2l.txt

# Errors only: pip also warns of every place in its settings that it finds empty.
PIP = -m pip install -qq --disable-pip-version-check

# Says what begins, and how many seconds after make did.
STARTED := $(shell date +%s)
stage = @echo "== $$(($$(date +%s) - $(STARTED))) s: $(1)"

# Of the chaos rig: the first seed, how many, and how many at a time.
SEED ?= 0
RUNS ?= 200
JOBS ?= 1

.PHONY: help demo test test-new test-old lint bench chaos clean
# Faults take their time, and hang on few packages: on the old ones only distributed's part is tested,
# by those of the resume that say most.
FAULTS = chaos test_checkpoints.py test_log_faults.py test_misbehaviour.py test_resume.py
RESUME = "killed_driver_is or detach_and or own_breaks or comes_back"
# The stages of `make test` want both cores, each.
.NOTPARALLEL:

help:
	@echo "make demo    run the search on this machine: an environment, a cluster, a picture"
	@echo "make test    lint, types, imports, and the tests on today's packages and on the old ones"
	@echo "make lint    the first three only"
	@echo "make bench   the benchmarks of the README, about five minutes"
	@echo "make chaos   SEED=0 RUNS=200 JOBS=1: seeded faults against a real cluster, 15 s a run"
	@echo "make clean   remove the environments"

demo: $(VENV)/demo.stamp
	$(VENV)/bin/dask hpo demo

test: lint test-new test-old

test-new: $(VENV)/test.stamp
	$(call stage,tests on today's packages)
	$(VENV)/bin/python -m pytest

ifdef OLD_PYTHON
test-old: $(OLD)/test.stamp
	$(call stage,tests on the packages that d2l 1.0.3 pins)
	$(OLD)/bin/python -m pytest tests/test_resume.py -k $(RESUME)
	$(OLD)/bin/python -m pytest $(FAULTS:%=--ignore=tests/%)
else
test-old:
	@echo "skipped: the packages that d2l 1.0.3 pins need python3.11, which is not here"
endif

lint: $(VENV)/test.stamp
	$(call stage,lint)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(call stage,types)
	$(VENV)/bin/mypy
	$(call stage,imports)
	$(VENV)/bin/lint-imports

bench: $(VENV)/test.stamp
	$(VENV)/bin/python tests/bench/run.py

chaos: $(VENV)/test.stamp
	$(VENV)/bin/python tests/chaos/run.py --seed $(SEED) --runs $(RUNS) --jobs $(JOBS)

clean:
	rm -rf $(VENV) $(OLD)

# venv makes bin/pip last: where it is missing, nothing or half an environment is there.
$(VENV)/bin/pip:
	$(PYTHON) -m venv --clear $(VENV)

$(OLD)/bin/pip:
	$(OLD_PYTHON) -m venv --clear $(OLD)

$(VENV)/demo.stamp: pyproject.toml | $(VENV)/bin/pip
	$(call stage,installing what the demo needs into $(VENV): a minute or so)
	$(VENV)/bin/python $(PIP) '$(TORCH)' -e '.[demo]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml | $(VENV)/bin/pip
	$(call stage,installing today's packages into $(VENV): a minute or so)
	$(VENV)/bin/python $(PIP) '$(TORCH)' -e '.[demo,test,lint]'
	@touch $(VENV)/demo.stamp $@

# d2l comes without what it depends on: the file names what it really imports.
$(OLD)/test.stamp: pyproject.toml $(OLD_PINS) | $(OLD)/bin/pip
	$(call stage,installing the packages that d2l 1.0.3 pins into $(OLD): two minutes or so)
	$(OLD)/bin/python $(PIP) -r tests/requirements-d2l.txt
	$(OLD)/bin/python $(PIP) --no-deps d2l==1.0.3 -e .
	@touch $@
