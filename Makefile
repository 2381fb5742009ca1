# make up      start the whole service on this machine; needs no GPU, no Docker and no Postgres
# make test    run lint, type checks, import contracts and all tests (the same as CI)
# make bench   compare the optimizer step with other trainers on this machine
# make bench-cycle     measure where the time of a cycle goes, from the claim to the published adapter
# make bench-evaluation  compare held-out losses and answers with transformers' own functions
# make bench-ranks     compare runs of two processes with the same run of one
# make bench-gpu       measure the default recipe's step on this machine's GPU, with a model in the shape of the 14B;
#                      without a GPU it says why it cannot run
# make bench-growth    measure polls, sweeps and claims on 20 million rows; creates them first (10 GB)
# make bench-continual compare ways to train one run after another, on a stream of twelve batches; an hour or more
# make bench-samples   show what samples four real repositories become, and how fast
# make bench-page      measure how soon the page is painted, and what fifty open pages cost a training
# make faults  run all fault-injection tests in full; takes hours, and continues where it stopped
# make containers      test the image and the compose file on a running Docker engine
# Each target first installs what it needs into $(VENV).
SHELL       := /bin/bash
PYTHON      ?= $(shell command -v python3.11 || command -v python3)
VENV        ?= .venv
BIN         := $(VENV)/bin
# Without an NVIDIA GPU, pip uses torch's CPU builds, so that a laptop does not download CUDA. May be set to empty.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu)
PIP         := $(BIN)/python -m pip --disable-pip-version-check
ARGS        ?=
# pip shows its progress in a terminal. Elsewhere its output stays short.
QUIET       := $(if $(MAKE_TERMOUT),$(if $(CI),-q),-q)

.PHONY: up install dev test test-long faults containers bench bench-cycle bench-evaluation bench-ranks bench-gpu bench-continual bench-samples bench-growth bench-page check format lock clean

up: install
	@exec $(BIN)/codelupe up $(ARGS)

install: $(VENV)/.installed
dev: $(VENV)/.dev

$(VENV)/.venv:
	@echo "· Python environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Choose one with PYTHON=…")'
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { \
	  $(PYTHON) -m pip install -q --target $(VENV).bootstrap virtualenv && \
	  PYTHONPATH=$(VENV).bootstrap $(PYTHON) -m virtualenv -q --clear $(VENV) && rm -rf $(VENV).bootstrap; }
	@touch $@

$(VENV)/.torch: $(VENV)/.venv requirements/torch.txt
	@echo "· torch (some minutes on a slow line)"
	@$(PIP) install $(QUIET) --no-deps --retries 2 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements/torch.txt
	@touch $@

$(VENV)/.installed: $(VENV)/.torch requirements/cpu.txt pyproject.toml
	@echo "· the other packages"
	@$(PIP) install $(QUIET) --no-deps --require-hashes -r requirements/cpu.txt
	@$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed requirements/dev.txt
	@echo "· the tools for tests and checks"
	@$(PIP) install $(QUIET) --no-deps --require-hashes -r requirements/dev.txt
	@touch $@

check: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not containers and not long" $(ARGS)

test-long: dev
	$(BIN)/python -m pytest -m long $(ARGS)

faults: dev
	$(BIN)/python tests/faults $(ARGS)

bench: install
	$(BIN)/python benchmarks/step/__main__.py $(ARGS)

bench-cycle: install
	$(BIN)/python benchmarks/cycle/__main__.py $(ARGS)

bench-evaluation: install
	$(BIN)/python benchmarks/evaluation $(ARGS)

bench-ranks: install
	$(BIN)/python benchmarks/cycle/ranks.py $(ARGS)

bench-gpu: install
	$(BIN)/python benchmarks/gpu $(ARGS)

bench-continual: install
	$(BIN)/python benchmarks/continual $(ARGS)

bench-samples: install
	$(BIN)/python benchmarks/samples $(ARGS)

bench-page: dev
	$(BIN)/python benchmarks/page $(ARGS)

bench-growth: install
	$(BIN)/python benchmarks/growth $(ARGS)

containers: dev
	DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1 $(BIN)/python -m pytest -v tests/containers $(ARGS)

lock:
	requirements/lock.sh

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
