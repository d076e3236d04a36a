# llama_ckpt: every target sets itself up first, once, in .venv; nothing is installed anywhere else.
#
#   make validate-all     climb the whole ladder on the embedded model, or on MODEL=file.gguf
#   make test             the test suite (CPU)
#   make test-cuda        the tests and the ladder on a CUDA device
#   make validate-7b      Llama-2-7B at full size on a CUDA device, against llama.cpp's CUDA program:
#                         first `make reference REFERENCE_CMAKE_ARGS=-DGGML_CUDA=on`; models go to MODELS
#   make lint             ruff and mypy
#   make reference        install llama.cpp itself (the extra `reference`; it is compiled: minutes)
#   make reference-dumps  record the committed reference dumps again
#   make other-llamas     programs that nobody here wrote, recorded and judged (OTHERS_ARGS=--cheapest: two of
#                         them); writes docs/other_llamas.md, an hour or two on two cores
#   make real-model       SmolLM2-135M-Instruct from its package (98 MB): the ladder beside llama.cpp where that is
#                         installed, and what it says to PROMPT
#   make fuzz             damaged files by the thousand for SECONDS: read, or refused in a sentence; what broke a
#                         rule goes to build/fuzz
#   make vocabularies     fetch real vocabularies (90 MB) for the tests of the tokenizer, which skip them else
#   make docs             write docs/ again from the checkpoints and the command line's help, and what README.md
#                         and docs/diagnosis.md show of a terminal
#   make screenshots      the pictures in docs/reports.md, with a Chromium that is installed; look at them
#   make site             build the documentation as a site, in site/; strict, read without a network
#   make try-install      the built wheel in empty environments of PYTHONS (default: PYTHON)
#   make help             this text, as a bare `make`
#   make clean            remove .venv and everything that was built
#
#   PYTHONS="python3.11 python3.13"   for try-install
#   PYTHON=python3.12     the Python that makes .venv (3.11 or newer)
#   TORCH_INDEX=URL       install torch from that index, for another build of it
#   MODEL=file.gguf       the model for validate-all
#   SECONDS=60            for fuzz
#   PROMPT=text           the question for real-model
#   MODELS=folder         where validate-7b makes its models (29 GB), ./models without it
#   SYSTEM=1              for test-cuda and validate-7b: no set-up, PYTHON as it is, with its own torch

PYTHON ?= python3
PYTHONS ?= $(PYTHON)
TORCH_INDEX ?=
MODEL ?=
MODELS ?= models
SYSTEM ?=
PYTEST_ARGS ?=
OTHERS_ARGS ?=
PROMPT ?=
SECONDS ?= 60
FUZZ_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := -c requirements/torch.txt -c requirements/constraints.txt
INSTALLED := $(VENV)/.installed
TRITON := $(VENV)/.triton
REFERENCE := $(VENV)/.reference
# With the default, GGML_NATIVE, quantized models crash on some virtual CPUs.
REFERENCE_CMAKE_ARGS ?= -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON

.PHONY: help site screenshots try-install setup validate-all test cuda test-cuda validate-7b lint reference reference-dumps other-llamas real-model fuzz vocabularies docs clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

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

# Torch for CUDA brings the Triton that it was built with, and keeps it.
$(TRITON): requirements/triton.txt $(INSTALLED)
	$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) install --quiet -r $<
	@touch $@

# No cache: pip would take a wheel that was built with other CMAKE_ARGS for the same one.
$(REFERENCE): $(INSTALLED)
	CMAKE_ARGS="$(REFERENCE_CMAKE_ARGS)" $(PIP) install --no-cache-dir $(CONSTRAINTS) \
	    '$(shell sed -n 's/^reference = \["\(.*\)"\]$$/\1/p' pyproject.toml)'
	@touch $@

reference: $(REFERENCE)

# The worker starts beside the first checkpoints; of a large model, which may fill a device, behind the last.
validate-all: setup
ifeq ($(MODEL),)
	@mkdir -p build
	@$(BIN)/llama-ckpt check-worker > build/check-worker.txt 2>&1 & worker=$$!; \
	    $(BIN)/llama-ckpt validate; ladder=$$?; \
	    wait $$worker; worked=$$?; cat build/check-worker.txt; test $$ladder -eq 0 && exit $$worked; exit $$ladder
else
	$(BIN)/llama-ckpt validate --model "$(MODEL)"
	$(BIN)/llama-ckpt check-worker --model "$(MODEL)"
endif

# As many processes as there are cores: half the tests wait for a process of their own, and tensors are small.
test: setup $(TRITON)
	$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

# On a machine without a network the GPU's own Python runs the source tree as it lies there.
ON_GPU := $(if $(SYSTEM),PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON),$(BIN)/python)

cuda: $(if $(SYSTEM),,setup)
	@$(ON_GPU) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "torch sees no CUDA device")'

test-cuda: cuda
	$(ON_GPU) -m pytest -m cuda $(PYTEST_ARGS)
	$(ON_GPU) -m llama_ckpt validate --device cuda
	$(ON_GPU) -m llama_ckpt validate --device cuda --engine fast --precision high

validate-7b: cuda
	$(ON_GPU) -m tools.validate_full_size --folder "$(MODELS)"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

reference-dumps: reference
	$(BIN)/python tools/make_reference_dumps.py

# The cheapest need no llama.cpp; all the others stand beside it.
other-llamas: $(if $(findstring --cheapest,$(OTHERS_ARGS)),setup,reference)
	$(BIN)/python -m tools.other_llamas $(OTHERS_ARGS)

real-model: setup
	$(BIN)/python -m tools.real_model $(if $(MODEL),--model "$(MODEL)") $(if $(PROMPT),--prompt "$(PROMPT)")

fuzz: setup
	$(BIN)/python -m tools.fuzz --seconds $(SECONDS) $(FUZZ_ARGS)

vocabularies: setup
	$(BIN)/python -m tools.fetch_vocabularies

site: setup
	$(PIP) install --quiet -r requirements/site.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

screenshots: setup
	$(BIN)/python -m tools.screenshots

try-install: setup
	$(BIN)/python -m tools.try_install --python $(PYTHONS)

docs: setup
	$(BIN)/python -m tools.make_docs

clean:
	rm -rf $(VENV) .others build dist site *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find llama_ckpt checkpoints reference_dumps tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
