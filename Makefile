# One command each. Every target makes .venv and builds the extension first if that is needed; a
# second call installs nothing again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built
DEV_TOOLS := $(VENV)/.dev
SOURCES := setup.py $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)

.PHONY: help build demo test test-torch bench lint format cuda-check dist clean

help:
	@echo "make demo        train the emoji models and time the fusion layer (about 2 minutes)"
	@echo "make test        run the test suite"
	@echo "make test-torch  TORCH=2.15.0: run the operator tests of the built wheel under another torch"
	@echo "make bench       time the operators against their peers"
	@echo "make lint        ruff, mypy, clang-format"
	@echo "make format      rewrite the sources as lint wants them"
	@echo "make cuda-check  compile and inspect the CUDA kernels"
	@echo "make dist        sdist and wheel, in dist/"
	@echo "make clean       remove what these commands made"

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt torch numpy pybind11 ninja setuptools wheel
	touch $@

$(BUILT): $(INSTALLED) $(SOURCES)
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[test]'
	touch $@

$(DEV_TOOLS): $(BUILT)
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

build: $(BUILT)

demo: $(BUILT)
	$(BIN)/mmfast demo

test: $(BUILT)
	$(BIN)/python -m pytest
