# `make demo` and `make test` create the environment. Needed: Python >= 3.10, pip, a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo install lint test docs faults test-detection test-avx2 gpu-check clean

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

# Tests run in two halves side by side, each with one thread, which take about equally long.
HALF = $(wildcard tests/*_test.py) tests/data tests/faults tests/system

test: export OMP_NUM_THREADS ?= 1
test: lint
	$(BIN)/python -m pytest $(HALF) & half=$$!; \
	$(BIN)/python -m pytest tests $(HALF:%=--ignore=%); others=$$?; \
	wait $$half && exit $$others

# The documentation as a site, searchable without a server: build/docs/index.html.
docs: $(VENV)/installed_docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -c docs . build/docs
	@echo "open build/docs/index.html"

$(VENV)/installed_docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# Kills, stops and starves real runs; `make test` leaves out the slow ones.
faults: install
	SLOW_TESTS=1 $(BIN)/python -m pytest tests/faults

# The tests that need detectron2, which `make install` does not install.
test-detection: install
	@$(BIN)/python -c 'import detectron2' 2>/dev/null || { \
	  echo "detectron2 is not installed. Install it (detection/README.md), which takes some minutes:"; \
	  echo "  $(BIN)/pip install ninja && $(BIN)/pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2"; \
	  exit 1; } >&2
	$(BIN)/python -m pytest tests/detection

# Tests that depend on the CPU, restricted to AVX2, with which bfloat16 is slow.
test-avx2: install
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest \
	  tests/system/machine_test.py tests/demo_test.py tests/published_step_test.py \
	  tests/ops/losses_test.py

# Installs nothing; uses the environment if it exists, else $(PYTHON), which must have torch.
gpu-check:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) launch/gpu_check.py

clean:
	rm -rf $(VENV) build *.egg-info
