# Two commands do everything on a fresh clone: `make demo` and `make test`. They make .venv once, with pinned versions.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
            $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# For a GPU: make TORCH="torch==2.13.0 --index-url <PyTorch's index for your CUDA>" ...
TORCH  ?= torch==2.13.0
JOBS   ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
DEMO   ?= runs/demo
SHARES ?= 8
COMMITS := $(shell git rev-list --count HEAD 2>/dev/null || echo 0)

.PHONY: demo test test-times record-times test-share test-all list-slow mutants mutants-share test-escnn test-networks table-networks faults docs lint perf install clean

install: $(STAMP)

$(STAMP): pyproject.toml lab/pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; name it with make PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs,test,lint,examples,networks]"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e "lab[all,ray]"
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m compileall -q src lab/src
	@touch $@

# What the library is for, in three parts with a number each, in an environment of its own (below 1.2 GB). Interrupted, it goes on.
demo: .venv-demo/.installed
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 .venv-demo/bin/equirelax demo --out $(DEMO) $(if $(SEEDS),--seeds $(SEEDS))

.venv-demo/.installed: pyproject.toml lab/pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; name it with make PYTHON=..." >&2; exit 1; }
	test -x .venv-demo/bin/python || $(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet --no-compile $(TORCH)
	.venv-demo/bin/python -m pip install --quiet --no-compile -c constraints.txt -e . -e "lab[run]"
	@touch $@

# Every test that is not slow, on all cores; `make test BUDGET=500` fails where that costs more CPU seconds on the reference core.
test: $(STAMP)
	$(BIN)/python tests/run_tiers.py fast $(if $(BUDGET),--budget $(BUDGET))

# The same, and what each test costs, dearest first, in runs/test-times.
test-times: $(STAMP)
	$(BIN)/python tests/run_tiers.py fast --times runs/test-times

# The same, and the line of seconds that README shows.
record-times: $(STAMP)
	$(BIN)/python tests/run_tiers.py fast --record lab/results/times/make-test.txt
	$(BIN)/python docs/tools/insert_results.py

# One in SHARES of the slow tests, another with every commit.
test-share: $(STAMP)
	$(BIN)/python tests/run_tiers.py share $(COMMITS)/$(SHARES)

test-all: $(STAMP)
	$(BIN)/python tests/run_tiers.py all

# One-line mistakes in the core, one by one: the fast tests must notice each. `make mutants MUTANTS=3/8` makes every eighth, from the third on.
mutants: $(STAMP)
	$(BIN)/python tests/mutants/run.py $(MUTANTS)

# A share of them, another with every commit.
mutants-share: $(STAMP)
	$(BIN)/python tests/mutants/run.py $(COMMITS)/$(SHARES)

# The tests that `make test` leaves out.
list-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow --collect-only

# Packages that cannot live beside the others have environments of their own: .venv-escnn, .venv-mace, .venv-schnetpack.
# Some pin what torch does not take and are installed by themselves.
ALONE-escnn      := escnn==1.0.11
ALONE-schnetpack := schnetpack==2.1.1

.venv-%/.installed: requirements-%.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; name it with make PYTHON=..." >&2; exit 1; }
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --no-compile $(TORCH)
	.venv-$*/bin/python -m pip install --quiet --no-compile -r requirements-$*.txt
	$(if $(ALONE-$*),.venv-$*/bin/python -m pip install --quiet --no-compile --no-deps $(ALONE-$*))
	@touch $@

# Skipped, and said so, only where escnn cannot be installed.
test-escnn:
	@if $(MAKE) --no-print-directory .venv-escnn/.installed; then \
	  OMP_NUM_THREADS=1 PYTHONPATH=src:lab/src .venv-escnn/bin/python -m pytest -q -m "not slow" tests/with_escnn lab/tests/with_escnn; \
	else echo "test-escnn: SKIPPED, for escnn 1.0.11 could not be installed into .venv-escnn (see above)"; fi

# Published networks: those whose packages live beside the others, then MACE, schnetpack and TorchMD-NET, skipped as above.
test-networks: $(STAMP) $(addprefix test-with-,mace schnetpack)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile tests/networks

test-with-%:
	@if $(MAKE) --no-print-directory .venv-$*/.installed; then \
	  OMP_NUM_THREADS=1 PYTHONPATH=src:lab/src .venv-$*/bin/python -m pytest -q tests/with_$* || exit 1; \
	else echo "test-networks: SKIPPED $*, which could not be installed into .venv-$* (see above)"; fi

# docs/reference/networks.md: what relax(network) does to every published network, from these tests.
table-networks: $(STAMP) .venv-mace/.installed .venv-schnetpack/.installed
	$(BIN)/python -m pytest -q tests/networks --networks-out lab/results/networks
	PYTHONPATH=src:lab/src .venv-mace/bin/python -m pytest -q tests/with_mace/test_mace_network.py --networks-out lab/results/networks
	PYTHONPATH=src:lab/src .venv-schnetpack/bin/python -m pytest -q tests/with_schnetpack --networks-out lab/results/networks
	$(BIN)/python docs/tools/insert_results.py

# Every fault of lab/tests/faults, the slow ones too, counted in lab/results/faults.
faults: $(STAMP)
	$(BIN)/python -m pytest -q lab/tests/faults --faults-out lab/results/faults

# The site, into site/: strictly, with the numbers that lab/results/ holds. Needs no network.
docs: $(STAMP)
	$(BIN)/python docs/tools/verdict.py --check
	$(BIN)/python docs/tools/comparisons.py --check
	$(BIN)/python docs/tools/insert_results.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(STAMP)
	$(BIN)/python -m ruff check src tests lab examples docs/tools docs/tutorial conftest.py
	$(BIN)/python -m mypy

perf: $(STAMP)
	$(BIN)/equirelax perf --simulate
	$(BIN)/equirelax perf modelnet40 --out runs/perf-modelnet40.json

clean:
	rm -rf $(VENV) .venv-demo .venv-escnn .venv-mace .venv-schnetpack runs site
