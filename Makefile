PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-deep fuzz hostile soak simulate test-versions regress lint bench bench-restore bench-ddl lock clean

install: $(VENV)/.installed  ## .venv with the command, the embedded parts and the test tools

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: install  ## archive a live shop, break it, restore it to the second before
	$(BIN)/archiver demo

JOBS ?= 4

test: install  ## each promise once: real PostgreSQL, real S3 servers; JOBS tests at a time, then those that measure
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not alone and not deep"
	$(BIN)/python -m pytest -m "alone and not deep"

test-deep: install  ## the other cases of each test, and those that take minutes
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m deep

VERSIONS ?= .versions

test-versions: install  ## sources of 14 to 18, each restored into every later one; gets the servers with npm
	$(BIN)/python -m tests.versions.obtain $(VERSIONS)
	ARCHIVER_TEST_VERSIONS=$(VERSIONS) $(BIN)/python -m pytest tests/versions

REGRESS ?= /usr/lib/postgresql/15/bin

regress: install  ## PostgreSQL's own regression tests under capture, restored and compared (not without differences yet)
	$(BIN)/python -m tests.regress.obtain $(VERSIONS)
	$(BIN)/python -m tests.regress.run --sources $(VERSIONS)/regress-15 --source $(REGRESS) --target $(REGRESS)

lint: install  ## ruff, mypy strict, the import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

SECONDS ?= 600
fuzz: install  ## random schemas, DDL and DML, restored and compared: SECONDS=600, or SEED=7 for one
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

hostile: install  ## sources whose owners attack, restored in every way, and nobody gains: SECONDS=600, or SEED=7 for one
	$(BIN)/python -m tests.hostile --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

POLICY ?= degrade
soak: install  ## random faults under load, then a restore that must be equal: SECONDS=600, POLICY=all, degrade or any
	$(BIN)/python -m tests.soak --seconds $(SECONDS) --policy $(POLICY) $(if $(SEED),--seed $(SEED))

simulate: install  ## the daemon's code in virtual time, every fault from a seed: SECONDS=600, RUNS=5000, or SEED=7 for one again
	$(BIN)/python -m tests.simulation --seconds $(SECONDS) $(if $(RUNS),--runs $(RUNS)) $(if $(SEED),--seed $(SEED))

bench: install  ## the capture path against pg_recvlogical
	$(BIN)/python bench/capture.py

bench-restore: install  ## a restore against pg_restore and the apply worker
	$(BIN)/python bench/restore.py

bench-ddl: install  ## what capturing DDL costs the source, per statement
	$(BIN)/python bench/ddl.py

lock:  ## resolve the dependencies again (needs uv)
	uv pip compile pyproject.toml --extra embedded --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links --upgrade -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache .hypothesis
