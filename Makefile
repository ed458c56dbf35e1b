# `make help` says what can be made. PYTHON names the interpreter that .venv is made from.
PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
RUN = PATH="$(CURDIR)/$(BIN):$$PATH"
CORES = $(shell nproc 2>/dev/null || echo 1)
DECLARED = pyproject.toml settings.ini setup.py $(wildcard ext/*)

# $(call timed,NAME,COMMAND) runs a command, and says how long it took if it went well.
timed = begin=$$(date +%s); $(2) || exit; echo "$(1): $$(($$(date +%s) - begin)) s"

.NOTPARALLEL:
.PHONY: help demo lab test lint docs sync release-check vit_toy mit_toy wrn_toy clean

help:
	@echo 'make demo   train and score the baseline on toy scenes (installs into $(VENV) first if needed)'
	@echo 'make lab    open the notebooks in JupyterLab (installs first if needed)'
	@echo 'make test   all that CI runs: lint, sync check, site, tests'
	@echo 'make lint   ruff, and a check of all annotations'
	@echo 'make docs   build the site into _build/html'
	@echo 'make sync   bring the package and README.md up to date with the notebooks; fails if they lagged'
	@echo 'make release-check  sdist and wheel in fresh environments, with and without a compiler (some minutes)'
	@echo 'make vit_toy train the weights of vit_toy that come with the package anew (some 10 minutes); make mit_toy, make wrn_toy those of the others'
	@echo 'make clean  remove what was built, $(VENV) excepted'

demo: $(VENV)/.installed-run
	$(RUN) wsss-demo
	@echo 'next: make lab opens the notebooks; source $(BIN)/activate, and wsss-run, wsss-predict and the others are found'

# Copies, so that reading and trying leaves the notebooks of the project as they are; a copy that is there stays.
lab: $(VENV)/.installed-run
	@mkdir -p lab; for f in $$(cd nbs && find . -type f ! -path '*/.*'); do \
		[ -e "lab/$$f" ] || { mkdir -p "lab/$${f%/*}"; cp "nbs/$$f" "lab/$$f"; }; done
	$(RUN) jupyter lab lab

test: lint sync docs
	@$(call timed,tests,$(RUN) SITE=built python -m pytest -n auto --ignore tests/test_types.py)

lint: $(VENV)/.installed-dev
	@$(call timed,ruff,$(RUN) ruff check)
	@$(call timed,types,$(RUN) python -m pytest -q tests/test_types.py)

release-check: $(VENV)/.installed-dev
	$(RUN) python tests/release_check.py

docs: $(VENV)/.installed-dev
	@mkdir -p _build/src
	@$(call timed,site in _build/html/index.html,$(RUN) sphinx-build -j $(CORES) -W --keep-going -q -c docs -d _build/doctrees _build/src _build/html)

sync: $(VENV)/.installed-dev
	@$(call timed,sync,$(RUN) sh docs/sync.sh)

vit_toy mit_toy wrn_toy: $(VENV)/.installed-run
	$(RUN) wsss-run baseline --data shapes:n=8000,seed=7 --preset vit_toy --backbone $@ --out runs/$@ --stages train --resume
	$(RUN) python -c "from wsss_nb.use.experiment import save_encoder; print(save_encoder('runs/$@', 'wsss_nb/assets/$@.safetensors'))"

clean:
	rm -rf _build _proc _docs build dist .pytest_cache .mypy_cache .ruff_cache

# A stamp is newer than what declares the requirements, or pip runs again. The package is installed in place:
# the notebooks and tests must meet the checkout, not a copy of it.
$(VENV)/.installed-run: $(DECLARED)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo '$(PYTHON) is older than Python 3.11: try make PYTHON=python3.12'; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV): some 6 GB, which takes minutes'
	$(BIN)/python -m pip install -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-run
	$(BIN)/python -m pip install -q -e '.[dev,docs,data]'
	$(BIN)/python -m pip install -q -e '.[crf]' || echo 'pydensecrf could not be built: the tests that compare with it are skipped'
	touch $@
