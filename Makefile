# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint format proto docs bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.server  ## start a cluster with the shipped model, ask it something, stop it
	$(BIN)/python -m examples.demo

test: $(VENV)/.dev  ## run the whole test suite
	$(BIN)/python -m pytest -q --durations=15

lint: $(VENV)/.dev  ## what CI checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy cluster engine model router experts kernels scheduler sigmoe training benchmarks examples tests
	$(BIN)/lint-imports
	$(BIN)/python -m docs.generate --check

format: $(VENV)/.dev  ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/.dev  ## make the gRPC stubs anew from proto/
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/sigmoe/v1/*.proto

docs: $(VENV)/.dev  ## write the reference pages of docs/ from the code
	$(BIN)/python -m docs.generate

bench: $(VENV)/.dev  ## measure the reference checkpoint, in process and through gRPC and Ray
	$(BIN)/python -m benchmarks.run

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build kernels/native/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.server: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[server]'
	touch $@

$(VENV)/.dev: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[server,dev]'
	touch $(VENV)/.server $@
