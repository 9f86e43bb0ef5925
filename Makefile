# make run, make test: set up once, then do it. See README.md.

PYTHON ?= python3
# The address of PyTorch's CPU builds, for machines without a GPU; empty is the default build (CUDA on Linux).
TORCH_INDEX ?=
ARGS ?=
# Processes that share the tests. Most of a test's time one core starts Ray, imports torch, or waits.
WORKERS ?= 2

VENV := .venv
READY := $(VENV)/ready
RUN := $(VENV)/bin/python

.PHONY: run test test-cluster soak bench lint types format constraints

run: $(READY)
	@$(RUN) -m orchestrator.run $(ARGS)

test: $(READY)
	@$(RUN) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# 'ray up' on hosts of network namespaces. Needs root and Debian's iproute2, openssh-server and rsync; where they
# are missing it is skipped and says so. Five minutes, half of them waiting; .ci/run leaves out the one of nodes
# that come and go.
test-cluster: $(READY)
	@$(RUN) -m pytest -m cluster -rs tests/cluster $(ARGS)

# What could be lost is tried many times: some minutes, and a table in benchmarks/results/faults.md. Then input of
# every kind, sixty times as much of it as in make test.
soak: $(READY)
	@FAULTS_TABLE=benchmarks/results/faults.md $(RUN) -m pytest -m "soak or not cluster" \
		tests/e2e/test_faults.py tests/e2e/test_resume.py $(ARGS)
	@$(RUN) -m pytest --hypothesis-profile=soak -k fuzzed $(ARGS)

# The numbers of docs/performance.md, on a machine with nothing else to do, in 20 to 30 minutes. They need the data and
# the models in ../shared. One pair of the race takes half of that; 'python -m benchmarks.race' runs three.
bench: $(READY)
	@$(RUN) -m benchmarks.start --out benchmarks/results/start.md
	@$(RUN) -m benchmarks.reports --out benchmarks/results/reports.md
	@$(RUN) -m benchmarks.inside_trial --pairs 2 --out benchmarks/results/inside_trial.md
	@$(RUN) -m benchmarks.one_more_trial --out benchmarks/results/one_more_trial.md
	@$(RUN) -m benchmarks.race --pairs 1 --out benchmarks/results/race.md

lint: $(READY)
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

types: $(READY)
	@$(RUN) -m mypy

format: $(READY)
	@$(RUN) -m ruff format .
	@$(RUN) -m ruff check --fix .

# PyTorch goes first and alone, so that the build asked for is there when others ask for any build. Modules are
# compiled at the end, as pip would use one core for it, but not packages' tests and transformers' hundreds of
# models, a third of all; some packages have templates that nobody can compile.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.11" >&2; exit 2; }
	@echo "setting up $(VENV): a few minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@echo "  installing PyTorch"
	@$(RUN) -m pip install -q --no-compile -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	@echo "  installing everything else"
	@$(RUN) -m pip install -q --no-compile -c constraints.txt -e '.[dev]'
	@$(RUN) -m compileall -qq -j 0 -x '/tests?/|/transformers/models/' $(VENV)/lib || true
	@touch $@

constraints: $(READY)
	@{ echo "# What the program is tested with; 'make constraints' writes this file."; \
		$(RUN) -m pip freeze --exclude-editable | grep -v ' @ ' | sed 's/+cpu$$//'; } > constraints.new
	@mv constraints.new constraints.txt
