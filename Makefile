# opd: `make quickstart` and `make test` make the environments they need in .venv and others.
# Installs again only where a pinned file under requirements/ changed.

PYTHON ?= python3
TORCH := 2.13.0
PINNED := core report graders train vllm airflow trackers dev peers docs
JOBS ?= 3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test test-gpu zoo check docs audit bench peers clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

quickstart: .venv/.opd .venv/.train .venv/.report ## run the whole pipeline on this machine's CPU
	$(BIN)/opd quickstart $(ARGS)

test: export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)
test: .venv/.opd .venv/.dev .venv-airflow/.airflow .venv-trackers/.trackers ## run the tests; ARGS='-k name' picks some, JOBS=n at once
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-gpu: $(if $(PY),,.venv/.opd .venv/.dev) ## run the tests that need a GPU; PY=python3 takes an environment of yours
	$(or $(PY),$(BIN)/python) -m pytest --confcutdir=tests/gpu $(ARGS) tests/gpu

zoo: .venv/.opd .venv/.dev ## try every causal architecture, tiny; ARGS='--engine vllm NAME'
	$(BIN)/python -m tests.zoo $(ARGS)

check: .venv/.opd .venv/.dev docs ## lint, format, types, import directions, the site of the documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv-docs/.docs ## build the documentation as a site in build/site, and check its links
	@.venv-docs/bin/python docs/make_site.py

audit: .venv-audit/.audit ## ask the public database for vulnerabilities of pinned versions
	@for file in $(PINNED); do echo "requirements/$$file.txt"; \
	.venv-audit/bin/pip-audit --no-deps --disable-pip -r requirements/$$file.txt || status=1; done; \
	exit $${status:-0}

bench: .venv/.opd .venv/.train ## run a benchmark; ARGS='NAME --quick'
	$(BIN)/python -m benchmarks $(ARGS)

peers: .venv/.opd .venv/.train .venv-peers/.peers ## measure opd run against TRL; ARGS='--quick'
	$(BIN)/python -m benchmarks peers $(ARGS)

clean: ## remove caches and build output; .venv and results stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	rm -rf .hypothesis .coverage htmlcov
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "opd needs Python 3.11 or newer, and $(PYTHON) is not. Run: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; \
	exit 1; }
	@$(PYTHON) -m venv .venv || { \
	echo "cannot make .venv: install Python's venv module (Debian, Ubuntu: apt install python3-venv)" >&2; \
	exit 1; }
	@touch $@

# torch comes first and alone, with its dependencies: an index may serve a CPU or a CUDA build.
.venv/.torch: Makefile | .venv/.made
	$(PIP) torch==$(TORCH)
	@touch $@

.venv/.core: requirements/core.txt .venv/.torch
	$(PIP) --no-deps -r $<
	@touch $@

.venv/.train: requirements/train.txt .venv/.core
	$(PIP) --no-deps -r $<
	@touch $@

.venv/.vllm: requirements/vllm.txt .venv/.train
	$(PIP) --no-deps -r $<
	@touch $@

.venv/.report: requirements/report.txt .venv/.core
	$(PIP) --no-deps -r $<
	@touch $@

.venv/.graders: requirements/graders.txt .venv/.core
	$(PIP) --no-deps -r $<
	@touch $@

.venv/.dev: requirements/dev.txt .venv/.vllm .venv/.report .venv/.graders
	$(PIP) --no-deps -r $<
	@touch $@

# Airflow's dependencies are its own, and change with each of its releases.
.venv-airflow/.airflow: requirements/airflow.txt | .venv/.made
	$(PYTHON) -m venv .venv-airflow
	.venv-airflow/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r $<
	@touch $@

# MLflow and trackio ask for older packages than vllm has.
.venv-trackers/.trackers: requirements/trackers.txt requirements/core.txt | .venv/.made
	$(PYTHON) -m venv .venv-trackers
	for file in core trackers; do .venv-trackers/bin/python -m pip --disable-pip-version-check install \
	--quiet --no-deps -r requirements/$$file.txt || exit; done
	@touch $@

.venv-docs/.docs: requirements/docs.txt | .venv/.made
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r $<
	@touch $@

# TRL beside what opd has itself, in the same versions.
.venv-peers/.peers: requirements/peers.txt requirements/train.txt requirements/core.txt | .venv/.made
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip --disable-pip-version-check install --quiet torch==$(TORCH)
	for file in core train peers; do .venv-peers/bin/python -m pip --disable-pip-version-check install \
	--quiet --no-deps -r requirements/$$file.txt || exit; done
	@touch $@

.venv-audit/.audit: | .venv/.made
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip --disable-pip-version-check install --quiet pip-audit
	@touch $@

.venv/.opd: pyproject.toml .venv/.core
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@
