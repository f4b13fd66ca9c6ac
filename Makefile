# make demo     train, compare and show the demo (model and data are fetched once)
# make test     lint, types, tests: what CI runs
# make check    lint and types only
# make demo-models the small pretrained models of the examples, up to 20 minutes each
# make examples every example config whose inputs have been made, minutes each
# make torture  the long tests of reliability: hundreds of kills, every byte of a checkpoint
# make oldest   a quick part of the tests with the oldest versions that pyproject.toml allows, in CI too
# make coverage which lines and branches of core, engine and store the tests reach; fails below 95 %
# make mutants  whether the tests notice a changed operator, constant or condition; half an hour or more
# make bench    the benchmarks that need no GPU
# make lock     the hashes of what constraints.txt names, after a change there
# make gpu      the tests and the benchmark that need a GPU, with the machine's own python3

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: help demo test check lint types tests demo-models examples torture oldest coverage mutants bench lock gpu clean
help:
	@sed -n 's/^# //p' Makefile

$(STAMP): pyproject.toml constraints.txt $(wildcard lock/*.py lock/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "deltatune needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python lock/install.py
	touch $(STAMP)

# torch 2.10.0, the oldest, is a build with CUDA on x86-64, gigabytes of it: make oldest OLDEST_TORCH=2.10.0
OLDEST := .venv-oldest
OLDEST_TORCH ?= 2.13.0

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip
	$(OLDEST)/bin/python -m pip install --quiet torch==$(OLDEST_TORCH)
	$(OLDEST)/bin/python -m pip install --quiet -c constraints-oldest.txt -e '.[dev,report,text,vision,audio,chem,hpo]'
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: check tests

check: lint types

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP)
	$(BIN)/mypy

tests: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

demo-models: $(STAMP)
	for file in examples/pretrain/*.py; do $(BIN)/python examples/models.py $$(basename $$file .py) || exit 1; done

examples: $(STAMP)
	$(BIN)/python -m pytest -m example tests/test_examples.py

torture: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m torture --timeout 1200

oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal tests/golden tests/store \
		tests/engine/test_attention_switch.py tests/engine/test_structure.py tests/core/test_image_processor.py \
		tests/train/test_resume.py tests/methods tests/cli/test_commands.py

COVERED := core engine store

coverage: $(STAMP)
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n $(WORKERS) --dist worksteal
	$(BIN)/coverage combine --quiet
	for folder in $(COVERED); do echo "$$folder/"; $(BIN)/coverage report --include="*/deltatune/$$folder/*" --fail-under=95 \
		|| failed=1; done; test -z "$$failed"

mutants: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutants.py

bench: $(STAMP)
	$(BIN)/python examples/models.py minilm
	$(BIN)/python examples/data.py reviews
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/load.py --rounds 3
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/trunk.py --pairs 7
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sweep.py --rows 600 --epochs 2 --rounds 1
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/job.py --rows 1000 --epochs 2
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/step.py --rounds 3 --methods lora dora ia3 loha lokr

lock: $(STAMP)
	$(BIN)/python lock/make.py

gpu:
	PYTHONPATH=src $(PYTHON) -m pytest -m gpu -p no:cacheprovider tests
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py

clean:
	rm -rf $(VENV) $(OLDEST) runs
