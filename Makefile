# `make train` learns Stochastic Moving MNIST on a fresh machine; `make test` is what CI runs.

PYTHON ?= python3
TORCH := torch==2.13.0
BIN := .venv/bin
SOURCES := svg_fast tests benchmarks setup.py
CPP := -name "*.h" -o -name "*.cpp" -o -name "*.cu" -o -name "*.cuh"
COMPILED := setup.py CMakeLists.txt csrc/cuda/kernels.cmake $(shell find csrc $(CPP))

.PHONY: build train test lint types unit browser sanitize faults bench clean

build: .venv/built

.venv/built: pyproject.toml Makefile $(COMPILED)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" "setuptools>=77" wheel cmake ninja pybind11
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[train,data,dev]"
	touch $@

train: build
	$(BIN)/svg-fast train smmnist-small --resume

test: lint types unit

lint: build
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests $(CPP))

types: build
	$(BIN)/mypy

unit: build browser
	$(BIN)/pytest

# In which a test looks at a report. Without it, and without the right to install it, that test is skipped.
browser:
	command -v chromium > /dev/null || { test "$$(id -u)" = 0 && apt-get -qq update && \
	apt-get -qq install --yes --no-install-recommends chromium > /dev/null; } || echo "no Chromium to look at reports with"

# The op tests under AddressSanitizer and UndefinedBehaviorSanitizer, with every instruction set that the CPU has; then
# on emulated CUDA kernels, also under ThreadSanitizer.
sanitize: build
	$(BIN)/python tests/sanitize.py
	$(BIN)/python tests/sanitize_kernels.py

# Workers of distributed runs killed at random moments, ten runs in a row: each must end by itself, bit for bit as if
# nobody had disturbed it.
faults: build
	$(BIN)/python tests/kill_workers.py --times 10

# Every benchmark against its peers in one run, then a picture of it; needs a quiet machine.
bench: build
	mkdir -p benchmarks/results
	$(BIN)/pytest benchmarks --benchmark-json=benchmarks/results/latest.json
	$(BIN)/svg-fast bench plot benchmarks/results/latest.json --out benchmarks/results/latest.png

clean:
	rm -rf .venv build *.egg-info svg_fast/*.so runs
