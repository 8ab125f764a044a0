# `make demo` and `make test` do all the set-up: Python >= 3.10, pip and a C compiler are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo install lint test clean

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

clean:
	rm -rf $(VENV) build *.egg-info
