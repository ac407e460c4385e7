.DEFAULT_GOAL := help
.PHONY: help install demo test lint ablation bench bench-quick clean distclean

PYTHON ?= python3
# What pip is asked for to get PyTorch: a version, and an index for another build than PyPI's.
TORCH ?= $(shell grep '^torch==' constraints.txt)
# Appended to each command of the demo, e.g. DEMO_FLAGS="--trainer.max_epochs=1 --trainer.check_val_every_n_epoch=1".
DEMO_FLAGS ?=
# Processes of `make test`; 0 for all tests one after the other.
WORKERS ?= 2
# Of `make ablation`: a file of configs/ablations without its suffix, and --quick, or nothing for the whole study.
STUDY ?= backward
QUICK ?= --quick

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

install: .venv/.installed ## make .venv with the tested versions; another PyTorch with TORCH="torch==… --extra-index-url …"

# The stamp repeats the installation when the requirements change; naming TORCH repeats it in any case.
ifeq ($(origin TORCH),command line)
.PHONY: .venv/.installed
endif
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	grep -v '^torch==' constraints.txt > .venv/constraints.txt
	.venv/bin/pip install -c .venv/constraints.txt $(TORCH)
	.venv/bin/pip install -c .venv/constraints.txt -e '.[dev]'
	touch $@

demo: install ## pre-train, train and test a regularizer for MRI; results in runs/demo, which is made anew
	rm -rf runs/demo
	.venv/bin/python main.py fit --config configs/mri_denoiser.yaml --run_dir runs/demo/denoiser $(DEMO_FLAGS)
	.venv/bin/python main.py fit --config configs/mri.yaml --run_dir runs/demo \
		--model.pretrained runs/demo/denoiser/regularizer.safetensors $(DEMO_FLAGS)
	.venv/bin/python main.py test --config runs/demo/config.yaml --ckpt_path runs/demo/checkpoints/best.ckpt $(DEMO_FLAGS)

test: install ## run all tests (those of real data where ELDER_TEST_DATA names their folder), in WORKERS=2 processes
	.venv/bin/python -m pytest --numprocesses $(WORKERS) --dist loadgroup

lint: install ## style, formatting, types, import layers and spelling
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright
	.venv/bin/lint-imports
	.venv/bin/typos

ablation: install ## run a study in its quick version and report it: STUDY=backward, solver, …; QUICK= for all of it
	.venv/bin/python main.py ablate run configs/ablations/$(STUDY).yaml $(QUICK)
	.venv/bin/python main.py ablate report configs/ablations/$(STUDY).yaml $(QUICK)

bench: install ## measure everything against other packages' methods, about an hour; writes docs/performance.md
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks run --name full
	.venv/bin/python -m benchmarks document --name full

bench-quick: install ## measure one problem with two regularizers, in three minutes; shown, and in benchmarks/results
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks run --name quick --sections '[bed, training]' \
		--problem '[denoising]' --regularizer '[wcrr, dncnn]' --size 32 --repeats 1

clean: ## remove caches and builds; .venv and runs stay
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache
	find . -path ./.venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf .venv
