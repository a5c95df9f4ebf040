# Everything runs in .venv, which `make` itself fills with the tested versions: each target with what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo week ui test test-all test-s3 lint docs notebooks clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.has-demo ## make .venv and install what running needs, in the tested versions

# .has-NAME: the extra NAME of pyproject.toml is installed.
$(VENV)/.has-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed, since Hydra 1.3 cannot start on later ones; this is " + sys.version + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

demo: $(VENV)/.has-demo ## the whole path on drawn tyres: S3, training, registry, prediction
	$(BIN)/python -m tyre_lightning.demo

week: $(VENV)/.has-dev ## a plant's week on drawn tyres, with a person at the page (needs Chromium and its driver)
	$(BIN)/python -m tyre_lightning.demo.week

# Without the eight processes that judge language models: ten seconds of work at every start.
ui: $(VENV)/.has-demo ## open the MLflow UI on port 5000
	hosts="localhost 127.0.0.1 $$(hostname) $$(hostname -f 2>/dev/null) $$(hostname -I 2>/dev/null)"; \
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --host 0.0.0.0 --port 5000 --backend-store-uri sqlite:///mlflow.db \
		--allowed-hosts "$$(printf '%s:*,' $$hosts)" --cors-allowed-origins "$$(printf 'http://%s:5000,' $$hosts)"

# Three processes on two cores (four and six take longer): some tests wait for other processes, or for time to pass. They
# keep the bytecode, or each would compile all of the project anew, and their files in memory where 8 GB of it serve as a
# disk: they write 13 GB, two at a time, and waited for the disk.
MEMORY = $(if $(TMPDIR),,$(shell [ -w /dev/shm ] && df -Pk /dev/shm | awk 'NR == 2 && $$4 > 8e6 {print "TMPDIR=/dev/shm"}'))
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(MEMORY) $(BIN)/python -m pytest -n 3 --dist worksteal

test: $(VENV)/.has-dev ## run the tests
	$(PYTEST) -m 'not slow'

test-all: $(VENV)/.has-dev ## run the long ones too
	$(PYTEST)

test-s3: $(VENV)/.has-dev ## run the S3 tests against Ceph (apt-get install --no-install-recommends radosgw ceph-mon ceph-osd)
	@command -v radosgw >/dev/null || { echo "radosgw is not installed: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd"; exit 1; }
	$(BIN)/python -m pytest -m radosgw

lint: $(VENV)/.has-dev docs ## check style, types and the documentation's links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.has-dev ## build the documentation: outputs/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebooks: $(VENV)/.has-demo $(VENV)/.has-notebooks ## execute the notebooks on the demo's images and runs
	$(BIN)/python notebooks/execute.py notebooks/*.ipynb

clean: ## remove what the demo and the tests leave
	rm -rf demo outputs mlruns mlflow.db predictions.* build dist .pytest_cache .mypy_cache .ruff_cache
