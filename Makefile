# make quickstart   the main job on real text, on a CPU, to a table and a dashboard
# make test         the tests
# make check        lint, format, types
# make study        every method on every scaling (a GPU, hours); QUICK=1: a tiny model, minutes of a CPU
# make docs         the documentation as a site, .artifacts/site/index.html; its search needs a server:
#                   python3 -m http.server --directory .artifacts/site
# make audit        known faults of the pinned packages; once a week
# make setup        only the environment; HASHES=1: from requirements.lock, each package by its hash
# make lock         requirements.lock again, after a change of constraints.txt

PYTHON ?= python3
VENV ?= .venv
# Test files run at a time.
WORKERS ?= 2
# Runs of the study that share each GPU.
JOBS ?= 2
RUN := $(VENV)/bin/python

.PHONY: setup quickstart study test check docs audit lock format clean

setup: $(VENV)/.installed

# The stamp is written last, so an installation that was cut off is done again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "error: Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is $$($(PYTHON) --version);" \
		"name another with PYTHON=python3.12" >&2; exit 2; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "installing pinned packages into $(VENV) (about 3 GB, a few minutes)"
	@$(INSTALL)
	@touch $@

# pip has no hash for an editable project, which is installed by what is there already.
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
ifdef HASHES
INSTALL := $(PIP) --require-hashes --requirement requirements.lock && \
	$(PIP) --no-deps --no-build-isolation -e .
else
INSTALL := $(PIP) -e '.[dev]' -c constraints.txt
endif

quickstart: setup
	$(RUN) -m src.train +experiment=quickstart
	$(RUN) -m src.dashboard

study: setup
	$(RUN) -m benchmarks.study $(if $(QUICK),--quick --jobs 2,--jobs $(JOBS))

# Many tests start processes: bytecode is kept for them also where the environment says not to.
test: setup
	PYTHONDONTWRITEBYTECODE= $(RUN) -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

check: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

# Links that lead nowhere are errors.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet

$(VENV)/.docs: $(VENV)/.installed
	@$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[docs]' -c constraints.txt
	@touch $@

# In an environment of its own: it is no part of the project's.
audit:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.9.0
	$(VENV)-audit/bin/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip

# Hashes of all files of the pinned packages, as the package index has them, for every platform.
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(VENV)-lock/bin/uv pip compile pyproject.toml --extra dev --constraints constraints.txt --universal \
		--python-version 3.11 --generate-hashes --no-annotate --no-config --quiet \
		--custom-compile-command 'make lock' --output-file requirements.lock

format: setup
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
