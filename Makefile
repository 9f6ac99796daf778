# Each target does its own set-up; a fresh machine needs Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test lint types unit bench train train-fuyu gpt1-vocabulary check-cuda clean

demo: $(VENV)/.torch $(VENV)/.fuyu  ## write a story, and look at a drawing, with the models in the box
	$(BIN)/triptych generate "Once upon a time there was a little girl who" --seed 4
	$(BIN)/triptych caption docs/drawing.png

test: lint types unit  ## everything that continuous integration runs

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/pytest

bench: $(VENV)/.bench  ## this project beside its peers: a quarter of an hour, and more where their environments are made
	$(BIN)/python benchmarks/run.py $(or $(ARGS),--write)

train: $(VENV)/.train  ## a model of your own: make train ARGS="TEXTS --valid MORE_TEXTS --out runs/mine"
	$(BIN)/python recipes/train_language_model.py $(or $(ARGS),--help)

train-fuyu: $(VENV)/.train  ## the model that looks at pictures: make train-fuyu ARGS="--out runs/shapes-fuyu"
	$(BIN)/python recipes/train_fuyu.py $(or $(ARGS),--help)

gpt1-vocabulary: $(VENV)/.dev  ## OpenAI's own vocabulary against the recorded ids: make gpt1-vocabulary FOLDER=...
	GPT1_VOCABULARY=$(FOLDER) $(BIN)/pytest tests/real_openai_gpt_vocabulary.py

check-cuda: $(VENV)/.dev  ## what only a machine with a GPU can show
	$(BIN)/pytest tests/cuda_checks.py tests/cuda_attention_checks.py

clean:
	rm -rf $(VENV) .bench .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Triptych needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing triptych[$*] into $(VENV): a minute or several, once."
	$(INSTALL) ".[$*]"
	@touch $@
