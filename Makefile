# llama_ckpt: every target sets itself up first, once, in .venv; nothing is installed anywhere else.
#
#   make validate-all     climb the whole ladder on the embedded model, or on MODEL=file.gguf
#   make test             the test suite (CPU)
#   make test-cuda        the tests and the ladder on a CUDA device
#   make lint             ruff and mypy
#   make reference        install llama.cpp itself (the extra `reference`; it is compiled: minutes)
#   make reference-dumps  record the committed reference dumps again
#   make docs             write docs/ again from the checkpoints and the command line's help
#   make clean            remove .venv and everything that was built
#
#   PYTHON=python3.12     the Python that makes .venv (3.11 or newer)
#   TORCH_INDEX=URL       install torch from that index, for another build of it
#   MODEL=file.gguf       the model for validate-all

PYTHON ?= python3
TORCH_INDEX ?=
MODEL ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := -c requirements/torch.txt -c requirements/constraints.txt
INSTALLED := $(VENV)/.installed
REFERENCE := $(VENV)/.reference
# With the default, GGML_NATIVE, quantized models crash on some virtual CPUs.
REFERENCE_CMAKE_ARGS := -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON

.PHONY: setup validate-all test test-cuda lint reference reference-dumps docs clean
.DELETE_ON_ERROR:

setup: $(INSTALLED)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llama_ckpt needs Python 3.11 or newer, got %d.%d: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# torch comes first and by its exact version, so that nothing else chooses it. The stamp makes the
# set-up run once, and again when a requirement changes.
$(INSTALLED): pyproject.toml requirements/torch.txt requirements/constraints.txt | $(BIN)/python
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),-c requirements/constraints.txt) -r requirements/torch.txt
	$(PIP) install --quiet $(CONSTRAINTS) setuptools
	$(PIP) install --quiet $(CONSTRAINTS) --no-build-isolation -e '.[test,dev]'
	@touch $@

# No cache: pip would take a wheel that was built with other CMAKE_ARGS for the same one.
$(REFERENCE): $(INSTALLED)
	CMAKE_ARGS="$(REFERENCE_CMAKE_ARGS)" $(PIP) install --no-cache-dir $(CONSTRAINTS) \
	    '$(shell sed -n 's/^reference = \["\(.*\)"\]$$/\1/p' pyproject.toml)'
	@touch $@

reference: $(REFERENCE)

validate-all: setup
	$(BIN)/llama-ckpt validate $(if $(MODEL),--model "$(MODEL)")

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-cuda: setup
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make test-cuda: torch sees no CUDA device")'
	$(BIN)/python -m pytest -m cuda $(PYTEST_ARGS)
	$(BIN)/llama-ckpt validate --device cuda

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

reference-dumps: reference
	$(BIN)/python tools/make_reference_dumps.py

docs: setup
	$(BIN)/python tools/make_docs.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find llama_ckpt checkpoints reference_dumps tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
