# The commands of the README. Each sets up what it needs in .venv, once; a second call starts at once.
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
PIP_FLAGS ?=
ARGS ?=

# the python3 of the machine if the project supports it, else a newer or older one beside it
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3,10) <= sys.version_info[:2] <= (3,13))' >/dev/null 2>&1 && echo $$p && break; done)

.PHONY: help setup demo test browser-test lab check readme docs bench constraints
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(READY): settings.ini setup.py pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.10, 3.11, 3.12 or 3.13 is needed: https://www.python.org/downloads"; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version). This takes some minutes, once."
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { echo "On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install -q --upgrade pip
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m ipykernel install --sys-prefix >/dev/null
	@touch $@

setup: $(READY) ## make .venv and install everything (all the others do this, too)

demo: $(READY) ## run the DCLR paper from a slide to a tumour map, with a report in out/demo
	@$(BIN)/histolab-nb demo --out out/demo

test: $(READY) ## run every notebook as a test, then the other tests; ARGS='-k slides' runs a part
	@$(BIN)/python -m pytest $(ARGS)

browser-test: $(VENV)/.browser ## try the widgets in JupyterLab with Chromium or Chrome; pictures go to out/browser
	@$(BIN)/python -m pytest -o addopts="-v -ra --tb=short" tests/browser $(ARGS)

lab: $(READY) ## open the notebooks in JupyterLab
	@$(BIN)/histolab-nb lab $(ARGS)

check: $(READY) ## is the library in step with the notebooks, are they clean and in style?
	@$(BIN)/python tools/check.py

readme: $(READY) ## write README.md from nbs/index.ipynb
	@$(BIN)/python tools/readme.py

docs: $(VENV)/.docs ## write the site into _docs: notebooks, API, gallery; follow every link
	@$(BIN)/python tools/docs.py

bench: $(VENV)/.bench ## time this package beside others; ratios go to results/ (CONTRIBUTING.md lists them)
	@for f in benchmarks/*.py; do echo "== $$f"; $(BIN)/python $$f || exit 1; done

$(VENV)/.docs $(VENV)/.bench $(VENV)/.browser: $(VENV)/.%: $(READY)
	@$(BIN)/python -m pip install -q $(PIP_FLAGS) -c constraints.txt -e '.[$*]'
	@touch $@

constraints: $(READY) ## write constraints.txt from the versions that are installed now
	@$(BIN)/python tools/constraints.py
