# Two commands: `make demo` and `make test`. Each sets up what it needs, once, and again when
# pyproject.toml changes. An environment counts as made only when its stamp stands in it.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Pinned, so that pip takes no newer one: on many machines that is a download of several GB.
TORCH ?= torch==2.13.0

VENV = .venv
OLD = .venv-d2l
PIP = -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-new test-old lint bench clean

help:
	@echo "make demo    run the search on this machine: an environment, a cluster, a picture"
	@echo "make test    lint, types, imports, and the tests on today's packages and on the old ones"
	@echo "make lint    the first three only"
	@echo "make bench   the benchmarks of the README, about seven minutes"
	@echo "make clean   remove the environments"

demo: $(VENV)/demo.stamp
	$(VENV)/bin/dask hpo demo

test: lint test-new test-old

test-new: $(VENV)/test.stamp
	$(VENV)/bin/python -m pytest

# The old packages that d2l 1.0.3 pins need Python 3.11 or older; elsewhere they are left out.
test-old:
	@if $(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then \
	  $(MAKE) --no-print-directory $(OLD)/test.stamp && $(OLD)/bin/python -m pytest; \
	else echo "skipped: the packages that d2l 1.0.3 pins need Python 3.11 or older"; fi

lint: $(VENV)/test.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/test.stamp
	$(VENV)/bin/python tests/bench/run.py

clean:
	rm -rf $(VENV) $(OLD)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP) '$(TORCH)' -e '.[demo]'
	touch $@

$(VENV)/test.stamp: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP) '$(TORCH)' -e '.[demo,test,lint]'
	touch $@

# d2l comes without what it depends on: the file names what it really imports.
$(OLD)/test.stamp: pyproject.toml tests/requirements-d2l.txt
	test -x $(OLD)/bin/python || $(PYTHON) -m venv $(OLD)
	$(OLD)/bin/python $(PIP) -r tests/requirements-d2l.txt
	$(OLD)/bin/python $(PIP) --no-deps d2l==1.0.3 -e .
	touch $@
