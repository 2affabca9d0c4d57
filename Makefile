# make quickstart   set up and run the main job on the bundled model and samples
# make test         set up, check the code, run every test but those on a pretrained model
# make test-real    the tests on a pretrained model, fetched once: 93 MB, kept in ~/.cache/mlx-hybrid-tests
# make docs         the documentation as a site in build/site; warnings are errors
# make fix          format and mend what ruff can
# make clean        remove the environment and caches

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --no-compile --quiet --disable-pip-version-check
# modules are compiled as they are first imported, which is a quarter of them, and kept
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart test test-real check docs fix clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/.installed
	$(RUN) -m mlx_hybrid finetune

test: check
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-real: $(VENV)/.tested
	$(RUN) -m pytest -m real

check: $(VENV)/.tested
	@$(RUN) tools/no_cuda.py
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

docs: $(VENV)/.tested
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build

fix: $(VENV)/.tested
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist *.egg-info

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or run make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e .
	@touch $@

$(VENV)/.tested: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e '.[test]'
	@touch $@ $(VENV)/.installed
