# Every target builds .venv when it is missing or older than pyproject.toml.
.DEFAULT_GOAL := help
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/ready
# The quickstart compares two methods, so its name stands for two experiments.
NAMES = $(if $(filter quickstart,$(EXP)),quickstart quickstart_acl,$(EXP))

.PHONY: help train test lint world bench campaign

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $(READY)

train: $(READY)  ## train, test and report: make train EXP=souple_ctx4 [ARGS="--trainer.max_epochs 1"]
	@test -n "$(EXP)" || { echo 'make train needs EXP=name, a YAML in experiments/: make train EXP=quickstart'; exit 2; }
	$(BIN)/avloc train $(NAMES) $(ARGS)

# One thread a process: two that share the cores otherwise wait for each other's threads. Some files take minutes, so
# that whatever is left is taken over test by test, while a file's tests mostly stay together.
test: $(READY)  ## run the tests (slow ones too: make test ARGS="-m 'not gpu'")
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --durations 15 -m "not slow and not gpu" $(ARGS)

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check avloc data_prep tests
	$(BIN)/ruff format --check avloc data_prep tests
	$(BIN)/mypy

campaign: $(READY)  ## damage 10,000 inputs and kill 200 writers: make campaign ARGS="--inputs 500 --kills 20"
	$(BIN)/python -m tests.robustness $(ARGS)

world: $(READY)  ## write the embedded world's shards to data/
	$(BIN)/avloc world $(ARGS)

bench: $(READY)  ## measure a training step and the loader
	$(BIN)/avloc bench step $(ARGS)
	$(BIN)/avloc bench loader
