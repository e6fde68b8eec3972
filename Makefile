# What people and CI run. Everything happens in .venv; `make install` makes it and the other targets ask for it first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
LOCKS  := pyproject.toml requirements.lock requirements-demo.lock
# Named by content, so a fresh checkout with new file times installs nothing twice.
STAMP  := $(VENV)/installed-$(shell cat $(LOCKS) | sha256sum | cut -c1-16)
WORKERS ?= 2
BENCH_ARGS ?=

export DS_BUILD_OPS := 0
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help install lint test test-padding test-nvme quickstart docs families bench bench-gpu wheel lock clean

help:
	@echo "make install     a virtual environment in $(VENV) with the pinned releases and thawline itself"
	@echo "make quickstart  install, then fine-tune MiniLM on tweets in two stages (under 3 minutes on 2 cores)"
	@echo "make test        all tests, with coverage          WORKERS=$(WORKERS) processes"
	@echo "make test-padding  a text alone and in a batch, for every architecture of transformers (a minute)"
	@echo "make test-nvme   the tests of offload: nvme, with what they compile first (ten minutes)"
	@echo "make lint        ruff, mypy and the import floors"
	@echo "make docs        write docs/recipes.md anew from the recipe's types"
	@echo "make families    estimate and measure every architecture of transformers; write docs/memory_families.md (10 minutes)"
	@echo "make bench       samples/s against transformers' Trainer, and the time of thawline --help"
	@echo "make bench-gpu   on a machine with a GPU: its tests, and the AdamW step against its peers"
	@echo "make wheel       dist/thawline-*.whl"
	@echo "make lock        pin anew what pyproject.toml asks for; UPGRADE=1 takes the newest"
	@echo "make clean       remove caches and build products; the environment and runs/ stay"

install: $(STAMP)

PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --no-deps

$(STAMP): | $(BIN)/python
	@echo "installing the pinned releases into $(VENV): about 7 GB, some minutes the first time"
	@$(PIP) -r requirements.lock
	@$(PIP) -r requirements-demo.lock
	@$(PIP) --no-build-isolation --editable .
	@rm -f $(VENV)/installed-*
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "thawline needs Python 3.11 or newer; name one with make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)

lint: install
	ruff check .
	ruff format --check .
	mypy
	lint-imports

test: install
	pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

test-padding: install
	THAWLINE_WALK=1 pytest tests/unit/test_padding.py

test-nvme: install
	THAWLINE_COMPILE_ASYNC_IO=1 pytest tests/integration/test_offload_nvme.py

quickstart: install
	thawline run recipes/quickstart.yaml

docs: install
	python docs/write_recipes.py

families: install
	python -m benchmarks.families --write docs/memory_families.md

bench: install
	python -m benchmarks $(BENCH_ARGS)

bench-gpu: install
	pytest tests/gpu
	thawline bench adamw --device cuda

wheel: install
	python -m hatchling build -t wheel -d dist

lock: install
	uv pip compile pyproject.toml --extra dev --extra gguf --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --no-emit-index-url --no-header --no-annotate --quiet \
	  $(if $(UPGRADE),--upgrade) --output-file requirements.lock
	@sed -i '1i # Every release that `make install` installs (Python 3.11, Linux x86-64). Written by `make lock`; edit pyproject.toml instead.' requirements.lock

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .cache .coverage .coverage.*
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
