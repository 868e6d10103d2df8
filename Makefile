# Two commands matter: `make up` and `make test`. The rest is below them.

PYTHON ?= python3
VENV := .venv
UV ?= uv
BIN := $(VENV)/bin
IMAGE ?= celery-orchestrator:0.1.0
export ALEMBIC_QUIET := 1

.DEFAULT_GOAL := help
.PHONY: help up dev run down docker-build docker-run test test-long ci proves lint format bench chaos ctk coverage audit build lock clean

help: ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

up: $(VENV)/.ready ## everything in one terminal: Postgres, Redis, web, worker, beat, bridge, gateway, Flower
	@$(BIN)/orchestrator up

dev: $(VENV)/.ready ## the same for development: code is loaded again when it changes, used versions are raised
	@$(BIN)/orchestrator up --dev

run: up ## the same as `make up`; with DATABASE_URL and REDIS_URL in .env over servers of your own

down: $(VENV)/.ready ## stop the stack of this folder, from another terminal
	@$(BIN)/orchestrator down

docker-build: ## the image of every process
	docker build -t $(IMAGE) .

docker-run: docker-build ## every process of the Procfile in containers, with PostgreSQL and Redis (docker-compose.yml)
	@deploy/make-secrets
	IMAGE=$(IMAGE) docker compose up

test: $(VENV)/.dev ## what a change is judged by: lint, types, and all tests but those of `make test-long`
	@$(BIN)/python -m tests.run short

test-long: $(VENV)/.dev ## the rest of CI: fuzzing, the short form of chaos, environments built anew, platforms, another Debian
	@$(BIN)/python -m tests.run long

ci: $(VENV)/.dev ## both, as `.ci/run` does
	@$(BIN)/python -m tests.run all

proves: $(VENV)/.dev ## the tests of a fault's number, against the code in which it was found and this one: `make proves N=34`
	@$(BIN)/python -m tests.prove $(N)

coverage: $(VENV)/.dev ## unit, contract and document tests with a coverage report
	@$(BIN)/python -m pytest -q --cov=orchestrator --cov-report=term:skip-covered tests/unit tests/contracts tests/histories tests/serverless

audit: $(VENV)/.dev ## bandit over our code, and pip-audit over the locked packages (asks an advisory service on the network)
	@$(BIN)/bandit -q -c pyproject.toml -r api workflows migrations orchestrator
	@test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/pip install -q pip-audit; }
	@$(VENV)/audit/bin/pip-audit --disable-pip --require-hashes -r requirements.txt

build: $(VENV)/.ready ## the source distribution, and the wheel built from it, in dist/
	@rm -rf build dist
	@$(BIN)/python -c "import setuptools.build_meta as build; build.build_sdist('dist')" > /dev/null
	@$(BIN)/pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w dist dist/*.tar.gz

lint: $(VENV)/.dev ## ruff and mypy
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

format: $(VENV)/.dev ## let ruff write
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: $(VENV)/.bench ## all measures beside their peers; `make bench M=sequence` for one
	@$(BIN)/python -m benchmarks $(M)

chaos: $(VENV)/.dev ## the long form: kills, floods, freezes, 1,000 instances each
	@CHAOS=long $(BIN)/python -m pytest tests/chaos tests/serverless/test_fuzzing.py tests/serverless/test_odd.py tests/unit/test_native.py -p no:randomly -q -s

ctk: $(VENV)/.dev ## the Serverless Workflow conformance kit, with real workers and in one process; CTK=<its directory>
	@$(BIN)/python -m tests.serverless

lock: ## write the hash-locked requirements anew from the .in files (needs uv)
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements.txt requirements.in
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements-embedded.txt requirements-embedded.in
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements-dev.txt requirements-dev.in
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -o requirements-bench.txt requirements-bench.in

clean: ## remove the environment and caches; data in .orchestrator/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "no virtual environment could be made; on Debian: apt-get install python3-venv"; exit 1; }

# A lock is whole: with --no-deps nothing beside it is looked for, whatever pip this is, and `pip check` says what would lack.
INSTALL := $(BIN)/pip install -q --disable-pip-version-check --no-deps --require-hashes --only-binary :all:

$(VENV)/.ready: requirements-embedded.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing (once) …"
	@$(INSTALL) -r requirements-embedded.txt || { echo "the locked packages could not be installed; every one of them has a ready-made wheel for CPython 3.11 to 3.14 on Linux (x86_64, aarch64) and macOS"; exit 1; }
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/pip check -q --disable-pip-version-check
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.ready
	@$(INSTALL) -r requirements-dev.txt
	@$(BIN)/pip check -q --disable-pip-version-check
	@touch $@

$(VENV)/.bench: requirements-bench.txt $(VENV)/.dev
	@$(INSTALL) -r requirements-bench.txt
	@$(BIN)/pip check -q --disable-pip-version-check
	@touch $@
