# Two commands: `make reproduce` and `make test`. POSIX make; needs only Python 3.11 with venv.
#
#   PYTHON=python3.11           interpreter for the virtual environment
#   TORCH_INDEX=URL             index that has torch wheels to prefer, for example the CPU-only ones
#   EXPERIMENT=laptop           what `make reproduce` runs (config/experiment/)
#   CORES=all                   cores that the workflow may use
#   DEVICE=auto                 where `make bases` trains: auto, cpu or cuda
#   PIP_OPTIONS=                more options for pip install
#   PYTEST_OPTIONS=             more options for pytest
#   EXPERIMENTS=                what `make rehearse` runs (default: every published experiment)
#   FRESH=1 SLURM=1 FAULTS=1 RECORD=1   more of `make rehearse`: docs/rehearsal.md
#   GPU_OPTIONS=                options of `make gpu-check`

PYTHON ?= python3
TORCH_INDEX ?=
EXPERIMENT ?= laptop
CORES ?= all
DEVICE ?= auto
PIP_OPTIONS ?=
GPU_OPTIONS ?=
# Resolves and unpacks faster than the pip 23 that Python 3.11 brings.
PIP = 26.3
# Files in the order of tests/conftest.py: reordered by number of tests, the longest, which have few, would come last.
PYTEST_OPTIONS ?= --numprocesses auto --dist loadfile --no-loadscope-reorder

VENV = .venv
BIN = $(VENV)/bin
# Everything below runs in the environment as if it were activated, but through `python -m`: the scripts that pip
# installs hand their folder's name to a shell.
RUN = PATH="$$PWD/$(BIN):$$PATH"
SNAKEMAKE = $(RUN) python3 -m snakemake --cores "$$CORES"
RECORDED = laptop
# Values reach the shell as its variables, so none is read as a command.
export CORES DEVICE EXPERIMENT EXPERIMENTS FAULTS FRESH RECORD RECORDED SLURM TORCH_INDEX

.PHONY: help setup reproduce bases smoke rehearse test gpu-check reliability lint record pull readme clean

help:
	@echo "make setup      virtual environment in $(VENV) with the pinned packages"
	@echo "make reproduce  setup, then experiment $$EXPERIMENT; prints where the report is"
	@echo "make bases      setup, then trains every shipped base model from nothing and compares the hashes (hours)"
	@echo "make test       setup, then the tests"
	@echo "make reliability  setup, then the fault campaign in full (15 minutes); writes docs/reliability.md"
	@echo "make rehearse   setup, then every published experiment in miniature, on the loopback host (a quarter of an hour)"
	@echo "make gpu-check  what to run first on a GPU: tests, checks, times, six minutes at most (GPU_OPTIONS=--dry-run: on a CPU)"
	@echo "make smoke      setup, then the laptop experiment in its smallest size"
	@echo "make lint       format, style, type, import and dead-code checks of code and workflow"
	@echo "make record     hand finished results of experiment $$RECORDED to DVC"
	@echo "make pull       bring recorded results from the DVC remote; nothing is computed again"
	@echo "make readme     take numbers and pictures of finished experiment $$RECORDED into README or docs"
	@echo "make clean      remove the environment and what the workflow wrote (DVC's cache stays)"

# The environment is made anew only when the pins or the package's own description change. Bytecode is left to the first
# import: pip would compile every file of 230 packages, of which a run imports a small part.
setup:
	@wanted=$$(cat requirements.lock pyproject.toml | cksum); \
	if [ -x "$(BIN)/python" ] && [ "$$(cat "$(VENV)/stamp" 2>/dev/null)" = "$$wanted" ]; then exit 0; fi; \
	set -e; \
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is required; run make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'; \
	echo "Setting up $(VENV) (some minutes; packages are downloaded once)"; \
	$(PYTHON) -m venv "$(VENV)"; \
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) "pip==$(PIP)" \
		|| echo "pip $(PIP) is not available; continuing with the pip of $(PYTHON), which is slower"; \
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-compile $(PIP_OPTIONS) \
		$${TORCH_INDEX:+--extra-index-url "$$TORCH_INDEX"} --requirement requirements.lock; \
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) \
		--no-deps --no-build-isolation --editable .; \
	echo "$$wanted" > "$(VENV)/stamp"

reproduce: setup
	@$(SNAKEMAKE) --config experiment="$$EXPERIMENT"
	@echo "The report is $$PWD/results/$$EXPERIMENT/report/index.html"

# Resumes after interruptions. DEVICE=cpu hides a GPU, whose arithmetic gives other hashes than the shipped ones.
bases: setup
	@$(RUN) python3 -m reca.commands.bases --device "$$DEVICE" --cores "$$CORES"

smoke: setup
	@$(SNAKEMAKE) --config experiment=laptop_smoke
	@echo "The report is $$PWD/results/laptop_smoke/report/index.html"

# Every published experiment at scale tiny, from pins to tables, in build/rehearsal; no other host is reached.
rehearse: setup
	@$(RUN) python3 -m tests.rehearsal

test: setup
	@$(RUN) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python3 -m pytest $(PYTEST_OPTIONS)

# Needs torch, triton, transformers and pytest only, so it also runs without `make setup`, in the interpreter PYTHON.
gpu-check:
	@PYTHONPATH="$$PWD:$$PWD/kernels" $$([ -x "$(BIN)/python" ] && echo "$(BIN)/python" || echo "$(PYTHON)") \
		-m perf.gpu_check $(GPU_OPTIONS)

# Kills, changed bytes, hostile files and more, each kind with its figures; seeds in docs/reliability.md.
reliability: setup
	@$(RUN) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python3 -m pytest $(PYTEST_OPTIONS) --faults full --faults-record

lint: setup
	@$(RUN) python3 -m ruff check .
	@$(RUN) python3 -m ruff format --check .
	@$(RUN) python3 -m snakefmt --check workflow
	@$(RUN) python3 -m snakemake --lint
	@$(RUN) python3 -m mypy
	@$(RUN) python3 -m vulture
	@$(RUN) python3 -c "from importlinter.cli import lint_imports_command; lint_imports_command()" --no-cache

# `dvc commit` verifies nothing, so it runs only when Snakemake has nothing left to do.
record: setup
	@$(RUN) python3 -m reca compose "$$RECORDED" --out "build/$$RECORDED.yaml"
	@$(SNAKEMAKE) --dry-run --quiet --config experiment="$$RECORDED" 2>&1 | grep -q "Nothing to be done" || \
		{ echo "make record: experiment $$RECORDED is not finished; run: make reproduce" >&2; exit 1; }
	@$(RUN) python3 -m reca audit "results/$$RECORDED"
	@$(RUN) python3 -m dvc commit --force

# DVC does not hash what a remote gives, so the audit does, before anything uses it. A fresh clone
# has no memory of earlier runs, and pulled files have new time stamps: touching all of them in
# order tells Snakemake that they are the results of this very configuration and code. All: one
# that happens to be newer than its inputs would else be left without a record of what made it.
pull: setup
	@$(RUN) python3 -m reca compose "$$RECORDED" --out "build/$$RECORDED.yaml"
	@$(RUN) python3 -m dvc pull
	@$(RUN) python3 -m reca audit "results/$$RECORDED"
	@$(SNAKEMAKE) --touch --forceall --quiet --config experiment="$$RECORDED"

readme: setup
	@$(RUN) python3 -m reca.report.readme --take "results/$$RECORDED"

# Files that no stage wrote stay where they are, and are named.
clean:
	@if [ -x "$(BIN)/python" ]; then $(RUN) python -m reca.commands.clean; \
	else echo "make clean: no $(VENV), so results and data stay (make setup, then make clean)"; fi
	rm -rf "$(VENV)" .snakemake .pytest_cache .mypy_cache .ruff_cache
