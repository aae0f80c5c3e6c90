# SPDX-License-Identifier: Apache-2.0
# Every verb works alone in a fresh clone that has Python 3.11 or later and nothing else.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Torch comes first and pinned: left to choose, pip may bring gigabytes of GPU libraries.
# Options of pip may follow: make setup TORCH='torch==2.13.0 --index-url …'
TORCH ?= torch==2.13.0
# The build of TensorFlow without GPU libraries, a third of the size. With a GPU:
# make setup TENSORFLOW='keras tensorflow[and-cuda]'
TENSORFLOW ?= keras tensorflow-cpu
# More words for the tool behind a verb: make test ARGS='-m slow tests/torch'
ARGS ?=
# One benchmark alone: make bench BENCH=latency. These need neither data nor other tools;
# benchmarks/README.md has all.
BENCH ?= import_time creation kernels training_step latency

.PHONY: help setup demo test fix check bench docs house

help: ## list the verbs
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.ready ## make .venv with everything that the other verbs need

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(BIN)/python
	@echo "installing $(TORCH), a few minutes on a slow line"
	$(PIP) $(TORCH)
	@touch $@

$(VENV)/.ready: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "installing nncf and its tools"
	$(PIP) -c constraints.txt $(TENSORFLOW) tensorboard tf2onnx ai-edge-litert -e '.[torch,onnx,openvino,dev]'
	@touch $@

demo: setup ## train, quantize, export and compare a small network on real digits
	$(BIN)/python examples/digits_int8.py $(ARGS)

test: setup ## run the fast tests
	$(BIN)/python -m pytest -q $(ARGS)

fix: setup ## repair and format what can be repaired by a machine
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: setup ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## print the figures of the README, measured here
	@for name in $(BENCH); do \
	  echo "== $$name"; $(BIN)/python -m benchmarks.$$name $(ARGS); \
	done

docs: setup ## rewrite the option tables in docs/, check the links
	$(BIN)/python tools/docs.py

house: setup ## report sizes against the budgets of docs/style.md
	$(BIN)/python tools/house.py
