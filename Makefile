# peerd: what a newcomer types. `make help` lists the targets.
#
# Needs Python 3.11 or newer and make; everything else goes into $(VENV).
# Choose the interpreter with PYTHON=python3.12; the first that fits is taken otherwise.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)
# Errors only: the lock decides what is installed, so advice to upgrade would be noise.
PIP := $(VENV)/bin/python -m pip -qq --disable-pip-version-check --no-input
BIN := $(VENV)/bin

PROTOS := $(shell find proto -name '*.proto' 2>/dev/null)
SOURCES := peerd las models tests spec deploy hatch_build.py

INSTALLED := $(VENV)/installed.stamp
EDITABLE := $(VENV)/editable.stamp
STUBS := $(VENV)/stubs.stamp

.PHONY: client-kit help setup stubs test sim integration recorded hostile torture torture-las powercut rolling tutorial-test nightly fuzz coverage mutants spec lint format bench bench-fleet bench-repair bench-tier soak demo dev train evaluate lab labsmoke buys docs deb rpm lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

setup: $(INSTALLED) $(EDITABLE) $(STUBS)  ## make .venv with everything that is needed (idempotent)
	@:

$(INSTALLED): requirements.lock
	@[ -n "$(PYTHON)" ] || { echo "make: no Python 3.11 or newer found; name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "make: PYTHON=$(PYTHON) is not a Python 3.11 or newer" >&2; exit 1; }
	@printf '  setting up %s … ' "$(VENV)"; started=$$SECONDS; \
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
	$(PIP) install --require-hashes -r requirements.lock; \
	touch $@; took=$$((SECONDS - started)); \
	printf 'done (%d min %d s)\n' $$((took / 60)) $$((took % 60))

$(EDITABLE): $(INSTALLED) pyproject.toml
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

stubs: $(STUBS)  ## generate the protobuf code from proto/

$(STUBS): $(INSTALLED) $(PROTOS) hatch_build.py
	@$(BIN)/python hatch_build.py
	@touch $@

# Most of these tests wait for other processes, so that two share a core well; ARGS="-n 0" is one at a time.
test: setup  ## run the test suite (units, scripts, properties)
	$(BIN)/python -m pytest tests --ignore=tests/integration -n 2 --dist loadfile $(ARGS)

# SEEDS=20000 JOBS=2 is resumable; FIRST=k begins elsewhere; SEED=n replays one, V=1 with every event.
# RAFT=1: the LAS group is the real Raft; RAFT=alone: that group alone.
sim: setup  ## the simulator: a swarm of seeds (SEEDS, FIRST, JOBS), or one replayed (SEED=n, V=1); TRACE=dir replays recordings
	@$(BIN)/python -m $(if $(TRACE),peerd.testing.replay $(TRACE),peerd.testing.sim $(if $(RAFT),--raft$(if $(filter-out 1,$(RAFT)),=$(RAFT))) $(if $(SEED),--seed $(SEED) $(if $(V),-v),\
		--first $(or $(FIRST),0) --seeds $(or $(SEEDS),300) --jobs $(or $(JOBS),2)))

integration: setup  ## run the tests with real processes
	$(BIN)/python -m pytest tests/integration $(ARGS)

coverage: setup  ## branch coverage of both cores by units and scripts alone; fails below 98 %
	@$(BIN)/coverage run -m pytest tests/core tests/las_core tests/scripts --quiet $(ARGS)
	@$(BIN)/coverage report

mutants: setup  ## break one rule at a time; after how many seeds the simulator sees it; ARGS="--seeds 100"
	@$(BIN)/python -m tests.mutants.run $(ARGS)

spec:  ## check the formal model: searches, walks and mutants (needs g++); ARGS="--only split"
	@$(PYTHON) spec/check.py $(ARGS)
	@$(PYTHON) spec/conformance.py $(filter --deep,$(ARGS))

recorded: setup  ## record real processes under kill -9 and replay them; RUNS=20
	@$(BIN)/python -m tests.integration.test_recorded $(or $(RUNS),20)

hostile: setup  ## malformed calls, half-open and slow connections: nothing ends, memory stays; RPCS=200000 CONNECTIONS=1000
	@$(BIN)/python -m tests.integration.test_hostile --rpcs $(or $(RPCS),200000) --connections $(or $(CONNECTIONS),1000)

torture: setup  ## kill -9 of loaded peers again and again: nothing acknowledged is lost; ROUNDS=100
	@$(BIN)/python -m tests.integration.test_torture $(or $(ROUNDS),100)

torture-las: setup  ## LAS members killed, stopped, cut off, on failing disks (root): nothing acknowledged is lost; MINUTES=20 MEMBERS=5 SEED=1
	@$(BIN)/python -m tests.raft.raft_torture --minutes $(or $(MINUTES),20) --members $(or $(MEMBERS),3) \
		--seed $(or $(SEED),1) $(or $(ARGS),--links --disks)

powercut: setup  ## power cuts of loaded peers, as far as a file may be torn (needs cc); ROUNDS=20
	@$(BIN)/python -m tests.integration.test_powercut $(or $(ROUNDS),20)

# The page of JavaScript needs grpc-js, which npm gets once.
client-kit: setup  ## what a client in another language does right (docs/client-protocol.md); CLIENT="node my_client.js"
ifdef CLIENT
	@$(BIN)/python -m peerd.testing.conformance_kit $(CLIENT)
else
	@echo "the Python client:"
	@$(BIN)/python -m peerd.testing.conformance_kit $(BIN)/python -m peerd.testing.conformance_kit.python_client
	@echo "a page of JavaScript with grpc-js:"
	@if command -v npm > /dev/null; then \
	  npm install --silent --no-audit --no-fund --prefix build/bench @grpc/grpc-js@1.14.7 > /dev/null; \
	  NODE_PATH=build/bench/node_modules $(BIN)/python -m peerd.testing.conformance_kit \
	    node --no-deprecation peerd/testing/conformance_kit/grpc_js_client.js proto; \
	else echo "  node and npm are not here: left out"; fi
endif

tutorial-test: setup  ## run every command of docs/tutorial.md on three hosts made for it (root, Debian)
	@if command -v npm > /dev/null; then \
	  npm install --silent --no-audit --no-fund --prefix build/bench @grpc/grpc-js @grpc/proto-loader > /dev/null; fi
	@$(BIN)/python -m tests.tutorial.run "$$($(BIN)/python -m deploy.build deb --out build/tutorial)"

rolling: setup  ## upgrade every daemon of a loaded cluster from the version before, one after the other; ROUNDS=3
	@$(BIN)/python -m tests.integration.test_upgrade $(or $(ROUNDS),1)

# Each ends with what it found; the first that fails ends the night.
nightly: setup  ## the long forms of sim, spec, mutants, torture, power cuts, fuzz, attack and soak, one after the other
	$(MAKE) spec ARGS="--deep"
	$(MAKE) sim SEEDS=20000
	$(MAKE) sim RAFT=1 SEEDS=2000
	$(MAKE) mutants
	$(MAKE) torture ROUNDS=100
	$(MAKE) torture-las MINUTES=20 MEMBERS=3
	$(MAKE) torture-las MINUTES=20 MEMBERS=5
	$(MAKE) powercut ROUNDS=20
	$(MAKE) fuzz FUZZ_SECONDS=600
	$(MAKE) hostile
	$(MAKE) recorded RUNS=20
	$(MAKE) rolling ROUNDS=3
	$(MAKE) soak MINUTES=60 RATE=4

fuzz: setup  ## every call of both daemons with what nobody should send; FUZZ_SECONDS=600 SEED=n
	@$(BIN)/python -m tests.integration.test_fuzz $(or $(FUZZ_SECONDS),600) $(SEED)

lint: setup  ## ruff, mypy, import layers, buf on the protos, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint
	$(BIN)/codespell

format: setup  ## rewrite the sources in the project's form
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

soak: setup  ## a steady load with a stopped shadow and a stuck reader: does anything grow? MINUTES=10 RATE=20
	@$(BIN)/python -m tests.bench.bench_soak --minutes $(or $(MINUTES),10) --mb-per-s $(or $(RATE),20)

bench: setup  ## measure the project's bars; ONLY=one,many QUICK=1 ARGS="--rounds 9"
	@$(BIN)/python -m tests.bench.table $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick) $(ARGS)

bench-fleet: setup  ## what 10,000 peers, a dead rack, silent deaths and a killed leader of many shards cost; ONLY="size kill-log"
	@$(BIN)/python -m tests.bench.bench_fleet $(ONLY)

bench-repair: setup  ## a peer that lost its disk comes back: how soon it is whole, what appends see; ARGS="--gib 0.25"
	@$(BIN)/python -m tests.bench.bench_repair $(ARGS)

bench-tier: setup  ## SIZE_GB=5 through a cluster with a tenth of that as hot limit: file sizes, rates, every byte; ARGS="--store s3"
	@$(BIN)/python -m tests.bench.bench_tier --gb $(or $(SIZE_GB),5) $(ARGS)

demo: setup  ## a cluster, real transactions, a sickness, a kill, an account of it (DEMO_TRANSACTIONS, DEMO_FAULT, DEMO_SEED)
	@$(BIN)/python -m peerd.cli.demo

dev: setup  ## a throw-away cluster on loopback; ARGS="--peers 3 --las 1"
	@$(BIN)/peerd dev $(ARGS)

lab: setup  ## record runs of the fault lab for training; ARGS="--runs 4"
	@$(BIN)/python -m models.lab $(ARGS)

labsmoke: setup  ## try each kind of trouble and look-alike of the fault lab for half a minute (root)
	@$(BIN)/python -m models.lab --smoke $(or $(KIND),all)

buys: setup  ## what anticipation buys: each trouble of the lab with it and without (root); ARGS="--seeds 2"
	@$(BIN)/python -m models.lab.buys $(ARGS)
	@$(BIN)/python -m models.lab.buys --report

# HEAD=incident|hardware|history, by default all; the last two read PEERD_DATA (../shared/data).
HEADS := $(or $(HEAD),incident hardware history)

train: setup $(VENV)/train.stamp  ## train the heads anew and write their cards (installs torch); HEAD=history
	@for head in $(HEADS); do case $$head in \
	  incident) $(BIN)/python -m models.train $(ARGS);; \
	  *) OMP_NUM_THREADS=1 $(BIN)/python -m models.$${head}_head train $(ARGS);; \
	esac; done

evaluate: setup $(VENV)/train.stamp  ## print the shipped heads' figures on what was held out; HEAD=hardware
	@for head in $(HEADS); do case $$head in \
	  incident) $(BIN)/python -m models.evaluate $(ARGS);; \
	  *) OMP_NUM_THREADS=1 $(BIN)/python -m models.$${head}_head evaluate $(ARGS);; \
	esac; done

# Training needs torch, which nothing else here does. Where a CPU-only build is wanted, name its
# index in PIP_EXTRA_INDEX_URL. What the lock pins stays as it is.
$(VENV)/train.stamp: $(EDITABLE)
	@grep -E '^[a-z0-9._-]+==' requirements.lock | sed -E 's/ *\\$$//' > $(VENV)/constraints.txt
	@$(PIP) install --no-build-isolation --constraint $(VENV)/constraints.txt --editable '.[train]'
	@touch $@

docs: setup  ## regenerate the reference pages that come from the code
	@{ $(BIN)/python -m peerd.daemon.config --reference; \
	  echo; $(BIN)/python -m las.daemon.config --reference; } > docs/configuration.md
	@$(BIN)/python -m peerd.daemon.telemetry.schema > docs/telemetry.md
	@$(BIN)/python -m peerd.monitoring.metrics > docs/metrics.md
	@$(BIN)/python -m deploy.cli_reference > docs/cli.md
	@$(BIN)/python -m deploy.proto_reference > docs/api.md
	@$(BIN)/python tests/test_tidy.py --limits > docs/limits.md

# Resolved for every Python from 3.11 on and every platform at once (uv's universal mode).
deb: setup  ## a Debian package with all that it needs, in dist/; PACKAGE_PYTHON=/usr/bin/python3.12 for another release
	@$(BIN)/python -m deploy.build deb $(if $(PACKAGE_PYTHON),--python $(PACKAGE_PYTHON))

rpm: setup  ## the same as RPM (needs rpmbuild)
	@$(BIN)/python -m deploy.build rpm $(if $(PACKAGE_PYTHON),--python $(PACKAGE_PYTHON))

lock: $(INSTALLED)  ## resolve the dependencies anew and rewrite requirements.lock
	$(PIP) install --target $(VENV)/lock-tool --upgrade uv
	$(VENV)/lock-tool/bin/uv pip compile pyproject.toml --extra dev --extra demo \
		--universal --python-version 3.11 --generate-hashes --upgrade --quiet \
		--no-annotate --no-emit-index-url --no-emit-find-links \
		--no-header --output-file $(VENV)/resolved.txt
	@{ echo '# Every package of a development environment (runtime, extras dev and demo), pinned by'; \
	  echo '# version and hash, for Python 3.11 and later. Rewritten by `make lock`, used by `make setup`.'; \
	  cat $(VENV)/resolved.txt; } > requirements.lock

clean:  ## remove the environment, generated code, caches and what runs left behind
	@[ ! -x $(BIN)/python ] || $(BIN)/python hatch_build.py --remove
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find peerd las models tests -name __pycache__ -type d -prune -exec rm -rf {} +
