# `make demo` and `make test` do all the set-up: Python >= 3.10, pip and a C compiler are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo install lint test test-avx2 gpu-check clean

demo: install
	$(BIN)/python -m jigclu.launch --gin_file=gin/demo.gin --workdir=runs/demo

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest tests

# What depends on the CPU, as on one without AVX-512: bfloat16 is slow there.
test-avx2: install
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest \
	  tests/system/machine_test.py tests/demo_test.py tests/published_step_test.py \
	  tests/ops/losses_test.py

# Installs nothing: uses the environment if there is one, else $(PYTHON), which needs torch.
gpu-check:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) launch/gpu_check.py

clean:
	rm -rf $(VENV) build *.egg-info
