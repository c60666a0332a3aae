# Every target prepares what it needs: see tools/prepare.sh.

PYTHON := .venv/bin/python
SEEDS ?= 200
SECONDS ?= 60
FUZZ_ARGS ?=
DRILL_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
SCALE_ARGS ?=
DRILLS_ARGS ?=
TAKEOVER_ARGS ?=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help drill test check sim vectors interop fuzz bench scale drill-all takeover clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

drill: ## rehearse a failover in network namespaces; DRILL_ARGS="--method dr --failure handover"
	@tools/prepare.sh run
	@.venv/bin/lvsha drill $(DRILL_ARGS)

test: ## run the whole test suite; PYTEST_ARGS="-k election"
	@tools/prepare.sh test
	@$(PYTHON) -m pytest $(PYTEST_ARGS)

check: ## ruff, formatting and mypy --strict
	@tools/prepare.sh test
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check
	@$(PYTHON) -m mypy

sim: ## run the simulations for longer; SEEDS=5000
	@tools/prepare.sh test
	@for simulation in tests/simulation/test_*_simulation.py; do \
		$(PYTHON) -m "tests.simulation.$$(basename "$$simulation" .py)" $(SEEDS) || exit 1; \
	done

vectors: ## compare with recordings of a kernel; LVSHA_VECTORS=DIR for others than those here
	@tools/prepare.sh test
	@$(PYTHON) -m tests.vectors $(LVSHA_VECTORS)

interop: ## compare with a live kernel in a guest, and with keepalived; SEEDS=200
	@tools/prepare.sh interop
	@$(PYTHON) -m tests.interop --seeds $(SEEDS)
	@$(PYTHON) -m tests.interop.sync --seeds $$(( ($(SEEDS) + 4) / 5 ))
	@$(PYTHON) -m tests.interop.migration
	@$(PYTHON) -m tests.interop.vrrp

fuzz: ## drive the director with hostile frames, then datagrams; SECONDS=600 FUZZ_ARGS="--seed 7"
	@tools/prepare.sh test
	@$(PYTHON) -m tests.fuzz --seconds $(SECONDS) $(FUZZ_ARGS)
	@$(PYTHON) -m tests.fuzz.kernel_sync --seconds $$(( ($(SECONDS) + 4) / 5 ))

bench: ## measure against a bare packet loop on this machine
	@tools/prepare.sh test
	@$(PYTHON) -m bench $(BENCH_ARGS)

scale: ## cost, memory and pauses with a million connections; SCALE_ARGS=--quick
	@tools/prepare.sh test
	@$(PYTHON) -m bench.scale $(SCALE_ARGS)

drill-all: ## every drill with every method; DRILLS_ARGS="--method dr"
	@tools/prepare.sh test
	@$(PYTHON) -m bench.drills $(DRILLS_ARGS)

takeover: ## cut the power of lvsha and of keepalived in turns; TAKEOVER_ARGS="--turns 10"
	@tools/prepare.sh interop
	@$(PYTHON) -m bench.takeover $(TAKEOVER_ARGS)

clean: ## remove what the targets above have made in this directory
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist drill
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
