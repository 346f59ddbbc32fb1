# avmm: `make run` opens a console on the built-in guest, `make test` checks everything. Both set up what they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INTERPRETED := $(wildcard $(VENV)/.interpreted)
export AVMM_INTERPRETED := $(if $(INTERPRETED),1,$(AVMM_INTERPRETED))
COMPILED := $(if $(filter-out 0,$(AVMM_INTERPRETED)),,$(shell grep -v '^\#' compiled.txt))
BUILT := setup.py compiled.txt avmm/_pieces.c $(wildcard avmm/cpu/unicorn/shim/*) $(COMPILED)
WORKERS ?= 2
UNCOMPILE = find avmm -name compiled.json -o -name '*.so' ! -name '_shim.*' ! -name '_pieces.*' | xargs rm -f

.PHONY: run test test-long lint guests fetch bench docs compiled interpreted clean

run: $(VENV)/.run
	$(BIN)/avmm run

test: lint fetch
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(PYTEST)

test-long: lint fetch
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "long or not long" $(PYTEST)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy avmm console guests tests benchmarks

# Debian packages with the guests that the tests boot, unpacked into .cache without root
fetch: $(VENV)/.test
	$(BIN)/python tests/third_party.py

guests: $(VENV)/.run
	$(MAKE) -C guests PYTHON=$(abspath $(BIN)/python)

bench: $(VENV)/.test fetch
	$(BIN)/python -m benchmarks

# the manual, as docs/_build/index.html
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit("avmm needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@test "`uname -sm`" = "Linux x86_64" || { echo "avmm runs on Linux x86-64 only, and this is `uname -sm`."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.venv pyproject.toml $(BUILT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.venv pyproject.toml $(BUILT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/.run

$(VENV)/.docs: $(VENV)/.venv pyproject.toml $(BUILT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@ $(VENV)/.run

# the modules of compiled.txt as native code (so everything begins), and from now on without it
compiled: $(VENV)/.venv
	@rm -f $(VENV)/.interpreted $(VENV)/.run
	@$(MAKE) -s AVMM_INTERPRETED= $(VENV)/.run

interpreted: $(VENV)/.venv
	@touch $(VENV)/.interpreted
	@$(UNCOMPILE)

clean:
	rm -rf $(VENV) .cache build docs/_build *.egg-info
	$(UNCOMPILE)
	find avmm -name '_*.so' -delete
