# `make serve` and `make test` set themselves up on a machine that has Python 3.11, make and a C compiler.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt
SOURCES := clients/python serve export tests benchmarks docs

.PHONY: serve test bench gpu lint types protos constraints demo clean

serve: $(VENV)/serve.installed
	$(BIN)/mousetwin serve

test: $(VENV)/dev.installed
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

# The published checkpoints' numbers in the README; needs the checkpoints.
bench: $(VENV)/dev.installed
	$(BIN)/python benchmarks/compile.py

# Everything that needs a GPU, in an environment of its own: onnxruntime-gpu does not go with what the tests install.
MODELS ?= serve/mousetwin_serve/demo
gpu: $(VENV)-gpu/gpu.installed
	MOUSETWIN_MODELS=$(MODELS) $(VENV)-gpu/bin/python -m pytest -m gpu tests/gpu
	$(VENV)-gpu/bin/python benchmarks/gpu.py --models $(MODELS)

lint: $(VENV)/dev.installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/hadolint Dockerfile

types: $(VENV)/dev.installed
	$(BIN)/mypy
	$(BIN)/mypy benchmarks

# The stubs are generated with the oldest protobuf they are to run on; newer runtimes take older generated code.
protos:
	$(PYTHON) -m venv $(VENV)-protos
	$(VENV)-protos/bin/pip install --quiet grpcio-tools==1.64.3 'setuptools<80'
	$(VENV)-protos/bin/python -m grpc_tools.protoc -Iprotos --python_out=clients/python --pyi_out=clients/python \
		mousetwin/v1/digital_twin.proto mousetwin/v1/torchserve.proto

demo: $(VENV)/dev.installed
	rm -rf serve/mousetwin_serve/demo/demo
	$(BIN)/mousetwin demo --out serve/mousetwin_serve/demo

# Refreshes the pins on purpose: newest versions that pyproject.toml admits.
constraints:
	rm -rf $(VENV)-constraints
	$(PYTHON) -m venv $(VENV)-constraints
	$(VENV)-constraints/bin/pip install --quiet --upgrade pip
	$(VENV)-constraints/bin/pip install --quiet '.[dev]'
	( sed -n '/^#/p' constraints.txt; $(VENV)-constraints/bin/pip freeze --exclude mousetwin --exclude torch ) > constraints.new
	mv constraints.new constraints.txt
	rm -rf $(VENV)-constraints

clean:
	rm -rf $(VENV) $(VENV)-* .venvs

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)-gpu/gpu.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-gpu
	$(VENV)-gpu/bin/pip install --quiet --constraint constraints.txt --editable '.[gpu,torch]' pytest pyyaml
	@touch $@

$(VENV)/serve.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing the service into $(VENV) (once)"
	$(PIP) --editable '.[serve]'
	@touch $@

$(VENV)/dev.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing everything the tests need into $(VENV) (once; torch is large)"
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/serve.installed
