# make study              set up .venv, run a preset (PRESET=mini), build the book
# make study PRESET=nih DATA_ROOT=/path/to/ChestX-ray14
# make test               set up .venv, lint, types, import rule, every test
# make templates          write the notebooks' parameter cells from cxrstudy/study.py
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
PRESET ?= mini
DATA_ROOT ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: study pdf test test-slow check templates lab lock sbom audit clean

study: $(STAMP)
	@exec env DATA_ROOT="$(DATA_ROOT)" $(BIN)/cxrstudy run --preset "$(PRESET)" --book

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "Python 3.11 to 3.13 is needed"'
	@echo "installing the locked packages into $(VENV) (about 7 GB; some minutes; log: $(VENV)/install.log)"
	@$(BIN)/python -m pip install --require-hashes -r requirements.lock > $(VENV)/install.log 2>&1 \
	  && $(BIN)/python -m pip install --no-deps --no-build-isolation -e . >> $(VENV)/install.log 2>&1 \
	  || { tail -n 30 $(VENV)/install.log; exit 1; }
	@touch $@

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

templates: $(STAMP)
	$(BIN)/python -m cxrstudy.templates

pdf: $(STAMP)
	$(BIN)/cxrstudy book --pdf

test: check
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder --nbval-lax -m "not slow" tests notebooks

test-slow: check
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder --nbval-lax tests notebooks

lab: $(STAMP)
	$(BIN)/jupyter lab notebooks

# one universal lock for Python 3.11 to 3.13, with the hash of every file on PyPI; needs uv
lock:
	uv pip compile pyproject.toml --extra test --universal --python-version 3.11 --no-annotate --no-header \
	  --generate-hashes --default-index https://pypi.org/simple -o requirements.lock

# what the lock holds, as CycloneDX, and the licences in SECURITY.md; needs a package registry
sbom: $(STAMP)
	$(PYTHON) -m venv _build/sbom && _build/sbom/bin/pip install -q cyclonedx-bom==7.5.0
	_build/sbom/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --of JSON -o _build/sbom.json
	$(BIN)/python tests/faults/supply.py licences

# known vulnerabilities of the lock, as far as the package registry tells them
audit:
	$(PYTHON) tests/faults/supply.py audit

clean:
	rm -rf _build runs
