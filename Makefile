# Each target makes and uses .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
# Which versions: those that were tested together, or a file of your own (/dev/null: the newest).
CONSTRAINTS ?= constraints.txt

.PHONY: setup setup-test setup-docs setup-dev docs docs-links pictures quickstart course test test-all test-slurm lint bench bench-full gpu

setup: .venv/installed
setup-test: .venv/installed-test
setup-docs: .venv/installed-docs
setup-dev: .venv/installed-dev

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[test]"
	touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[docs]"
	touch $@

.venv/installed-dev: .venv/installed
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[dev]"
	touch $@

quickstart: setup
	$(BIN)/python recipes/quickstart.py $(ARGS)

# The site, in build/site: every warning is an error, a link to a page, heading or test that is not there too.
docs: setup-docs
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs build/site $(ARGS)

# The pictures of the docs, from small runs of their own, in docs/pictures; wants Chromium and takes minutes.
pictures: setup-dev
	$(BIN)/python docs/pictures.py $(ARGS)

# Its links to other sites; wants a network.
docs-links: setup-docs
	$(BIN)/python -m sphinx -b linkcheck -W --keep-going -q docs build/links $(ARGS)

.venv/installed-course: .venv/installed
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[course]"
	touch $@

# The course's twelve chapters in order: notebooks with their outputs, in build/course/en and build/course/zh.
course: .venv/installed-course
	$(BIN)/python docs/course/run.py $(ARGS)

# The fast tests, eight minutes on two cores.
test: setup-test
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

# Everything: also real processes, longer trainings, simulations.
test-all: setup-dev
	$(BIN)/python -m pytest -n 2 $(ARGS)

# What needs a real Slurm, on this machine as two nodes; as root: apt-get install slurm-wlm munge.
test-slurm: setup-dev
	$(BIN)/python -m pytest -m slurm $(ARGS)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# CPU seconds beside other ways to do the same, in one table and build/benchmarks.json: minutes.
bench: setup-dev
	$(BIN)/python tests/benchmarks/run_all.py --small $(ARGS)

# The same at real sizes, with rounds enough for narrow intervals: an hour or more.
bench-full: setup-dev
	$(BIN)/python tests/benchmarks/run_all.py $(ARGS)

# What only a GPU can show, in eight minutes; needs no network and no setup, see docs/speed.md.
gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tests/gpu/run.py $(ARGS)
