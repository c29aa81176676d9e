# Two commands for a fresh machine: `make demo` (a trained search engine that answers) and `make test` (lint, types, tests).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS ?= dev

.PHONY: demo test tests docs wheel smoke release gpu lint types clean

# A second call is instant: the stamp is newer than pyproject.toml.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "vtr needs Python 3.10 or newer; set PYTHON=python3.x" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile -e '.[$(EXTRAS)]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # pip compiles on one core; some packages hold files that are no Python
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m vtr.demo --out runs/demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The code folders are sub-packages of `vtr`; mypy sees them where an installed wheel has them, through links.
types: $(STAMP)
	@rm -rf build/types && mkdir -p build/types/vtr
	@ln -s ../../../vtr/* build/types/vtr/ && for d in encoders kernels pretrain eval data_manifests; do ln -s ../../../$$d build/types/vtr/$$d; done
	$(BIN)/mypy --config-file pyproject.toml --no-error-summary build/types/vtr

test: lint types tests

tests: $(STAMP)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# The site of docs/ in build/docs/index.html: a broken link, reference or page fails; no network is needed once its packages are there.
docs: $(STAMP)
	@$(BIN)/python -c 'import furo, myst_parser' 2> /dev/null || $(BIN)/python -m pip install --quiet -e '.[docs]'
	@rm -rf build/docs build/doctrees  # reference pages come from code whose changes Sphinx does not see
	$(BIN)/python -m sphinx -W -n --keep-going -q -b html -d build/doctrees docs build/docs
	$(BIN)/python docs/check_links.py build/docs

# The sdist and the wheel, checked, installed beside the project and tried from another folder.
wheel: $(STAMP)
	$(BIN)/python -m tests.installed

# What an upload would take: dist/, checked, installed and tried, with its section of CHANGELOG.md. Uploads nothing.
release: $(STAMP)
	$(BIN)/python -m tests.installed --keep dist

# The wheel in a fresh environment of another Python: make smoke PYTHON=python3.13. Fetches all dependencies, torch too; ENV=FOLDER
# takes an environment that has them.
smoke:
	$(PYTHON) tests/smoke.py $(if $(ENV),--env $(ENV))

# On a machine with a GPU: its tests and its benchmarks, by a Python that has torch (PYTHON=...), nothing installed; then
# docs/results/gpu.md. bench.mamba_baseline makes the comparison's wheels, which that Python may have.
OUT ?= runs/gpu
gpu:
	$(PYTHON) -m pytest -m gpu tests/kernels tests/bench; $(PYTHON) -m bench.kernels_cuda --out $(OUT) --minutes 4; $(PYTHON) -m bench.encoders_cuda --out $(OUT) --minutes 4
	$(PYTHON) -m bench.report $(OUT)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
