# The interface for people and CI. No target needs an activated virtual environment.

PYTHON ?= python3
# PyTorch build: cpu, auto, cu128, …; if empty, a wheel from pip's find-links or else the CPU build.
TORCH_BACKEND ?=
# More arguments for pytest, such as ARGS="tests/cli -k redis".
ARGS ?=

# Without cached bytecode every start of MLflow and PyTorch compiles thousands of files (three times slower).
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
BOOTSTRAP := $(PYTHON) scripts/bootstrap.py --torch-backend "$(TORCH_BACKEND)"
FOREIGN_CLIENTS := $(BIN)/python scripts/environments.py requirements/foreign-clients.lock .venv-foreign-clients
DOCS := $(BIN)/python scripts/environments.py requirements/docs.lock .venv-docs
PACKAGES := app cli client controller training workers

.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage check lint audit fuzz bench limits faults microbench simulate docs format lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: ## create .venv and install everything, including development tools
	@$(BOOTSTRAP) --lock dev

demo: ## train, serve and predict real digits; ONCE=1 ends after the predictions
	@$(BOOTSTRAP) --lock all
	@$(BIN)/modelyard demo $(if $(filter-out 0,$(ONCE)),--once)

test: ## run all tests; ARGS="tests/cli" runs some
	@$(BOOTSTRAP) --lock dev
	@scripts/test_packages.sh
	@$(FOREIGN_CLIENTS)
	@$(BIN)/pytest -n 3 $(ARGS)

coverage: ## run all tests, and check that they cover 90 % of every package
	@$(BOOTSTRAP) --lock dev
	@scripts/test_packages.sh
	@$(FOREIGN_CLIENTS)
	@$(BIN)/pytest -n 3 --cov --cov-report=term:skip-covered
	@for package in $(PACKAGES); do \
		percent=$$($(BIN)/coverage report --format=total --fail-under=90 --include="$$package/*") || \
			{ echo "of $$package less than 90 % is covered: $$percent" >&2; exit 1; }; \
		echo "of $$package $$percent % is covered"; done

check: lint ## lint, and run the tests that start no process; for daily work
	@$(BIN)/pytest -q -n 2 -m "not process" --hypothesis-profile=daily $(ARGS)

lint: ## check style, formatting, types and import contracts
	@$(BOOTSTRAP) --lock dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: ## look up known vulnerabilities of all pinned packages
	@$(BOOTSTRAP) --lock dev
	@$(BIN)/python scripts/audit.py

fuzz: ## send 24,000 hostile requests to a real controller; FUZZ_REQUESTS=100000 sends more
	@$(BOOTSTRAP) --lock dev
	@FUZZ_REQUESTS=$(or $(FUZZ_REQUESTS),24000) $(BIN)/pytest tests/e2e/test_fuzz.py -q $(ARGS)

bench: ## benchmark against other servers; WORKLOAD=tabular, image, text, large or real (all four), ONLY=modelyard,mosec, ROUNDS=1, QUICK=1
	@$(BOOTSTRAP) --lock dev
	@$(BIN)/python -m benchmarks.bench $(if $(WORKLOAD),--workload $(WORKLOAD)) $(if $(ONLY),--only "$(ONLY)") \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(filter-out 0,$(QUICK)),--quick)

faults: ## kill, suspend and disconnect processes under load, and account for every job; ONLY=name, SHORT=1, PUBLISH=1; ONLY=soak MINUTES=30 RATE=250
	@$(BOOTSTRAP) --lock dev
	@scripts/test_packages.sh
	@MINUTES=$(MINUTES) RATE=$(RATE) $(BIN)/python -m faults $(if $(ONLY),--only "$(ONLY)") $(if $(filter-out 0,$(SHORT)),--short) \
		$(if $(filter-out 0,$(PUBLISH)),--publish)

limits: ## measure a million waiting jobs, a thousand versions, two controllers, memory and start
	@$(BOOTSTRAP) --lock dev
	@$(BIN)/python -m benchmarks.limits

microbench: ## measure the steps of a request; ARGS="-k decode" measures some
	@$(BOOTSTRAP) --lock dev
	@$(BIN)/pytest benchmarks/micro -p no:xdist -W ignore --benchmark-columns=min,median,iqr,rounds $(ARGS)

simulate: ## calibrate, validate and run the simulated pool; ONLY=study uses the last measurements
	@$(BOOTSTRAP) --lock dev
	@$(BIN)/python -m benchmarks.simulation $(if $(ONLY),--only "$(ONLY)")

docs: ## build the documentation site into site/, and check its links
	@$(BOOTSTRAP) --lock dev
	@$(DOCS)
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --clean
	@echo "open site/index.html"

format: ## format the sources
	@$(BOOTSTRAP) --lock dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## pin the newest packages that pyproject.toml allows
	@$(BOOTSTRAP) --lock dev
	$(PYTHON) scripts/lock.py

clean: ## remove .venv and caches; keeps models, records and the pool's data
	rm -rf .venv .venv-foreign-clients .venv-docs site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis htmlcov build dist
	rm -f .coverage .coverage.* coverage.xml
	rm -rf *.egg-info client/*.egg-info client/build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
