# One target for each thing a person does; `make` alone lists them.
# Everything runs in .venv, which is made and kept up to date by itself.

PYTHON ?= python3
DATA ?=
NAME ?= --list
BIN := .venv/bin
PROTOC ?= .proto-venv/bin/python
EXTRAS := train,server,client,demo,bench,docs,dev

.DEFAULT_GOAL := help
.PHONY: help demo test check fix bench docs proto clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.venv: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON): Trunkline needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo 'installing pinned packages into .venv (two to five minutes the first time)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check -qq -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: .venv/.installed ## train, distil, plan, merge, verify and ask the sample tasks (DATA=folder: real data sets)
	$(BIN)/trunkline demo $(if $(DATA),--data $(DATA))

test: export OMP_NUM_THREADS = 1
test: .venv/.installed ## run every test
	$(BIN)/python -m pytest -n 2

check: .venv/.installed ## formatting, lint, types, layers, docstrings, dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry src

fix: .venv/.installed ## format, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.installed ## list the benchmarks, or run one (NAME=engine-xiaoai21)
	$(BIN)/python -m benchmarks $(NAME)

docs: .venv/.installed ## build the documentation into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

proto: $(PROTOC) ## make the gRPC messages again after src/trunkline/server/oip.proto was changed
	$(PROTOC) -m grpc_tools.protoc -I src/trunkline/server --python_out=src/trunkline/server \
		--pyi_out=src/trunkline/server oip.proto
	sed -i 's/_descriptor_pool\.Default()/_descriptor_pool.DescriptorPool()/' src/trunkline/server/oip_pb2.py

.proto-venv/bin/python:
	$(PYTHON) -m venv .proto-venv
	.proto-venv/bin/python -m pip install --disable-pip-version-check -qq grpcio-tools==1.74.0 'protobuf>=6.30,<7'

clean: ## remove outputs and caches; .venv stays
	rm -rf .proto-venv demo docs/_build .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .coverage
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
