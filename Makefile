# Two commands: `make course` runs every lesson, `make test` the test suite. Both build .venv first, once.
# Without make:  python3 -m venv .venv
#                .venv/bin/pip install -c constraints.txt -e ".[lab,site,test]"
#                .venv/bin/python -m amp_tutorial.course.run       (or: .venv/bin/python -m pytest)

PYTHON ?= python3
MODELS ?=
LESSONS ?=
STUDENTS ?=
OUT ?= out
JOBS ?= 1
BIN := .venv/bin

# Everything is embedded; to load a model from the hub: make course MODELS=hub-id HF_HUB_OFFLINE=0
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: course test test-all test-threads platforms lab notebooks site editions translations docs results leaderboard real benchmarks constraints venv wheel clean

course: .venv/installed
	$(BIN)/python -m amp_tutorial.course.run $(if $(MODELS),--models $(MODELS)) --lessons $(LESSONS) --out $(OUT) --jobs $(JOBS)

# One thread a worker: the models are so small that more only get in each other's way.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# Every family, model and setting, every lesson on two models and by nbval; much longer
test-all: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not exhaustive"

# The numerical tests once more, with two threads in one process
test-threads: .venv/installed
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m "numerics and not slow and not grid"

# The first cell and two lessons on Colab and Kaggle, rebuilt from their lists (some minutes, and a package index); and, where
# there is a browser, pages, JupyterLab and live figures in it
platforms: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m platforms tests/test_platforms.py

lab: .venv/installed
	$(BIN)/jupyter lab notebooks

# Execute notebooks/source/*.py and store them as notebooks/*.ipynb; only these: make notebooks LESSONS="01 03"
notebooks: .venv/installed
	$(BIN)/python -m amp_tutorial.course.build $(LESSONS)

# The lessons and pages as a site that needs no network: out/site/index.html
site: .venv/installed
	$(BIN)/python -m amp_tutorial.course.site --out $(OUT)/site

# Notebooks for students and for instructors: out/editions
editions: .venv/installed
	$(BIN)/python -m amp_tutorial.course.editions --out $(OUT)/editions $(if $(STUDENTS),--students $(STUDENTS))

# The catalogues of translations, after a lesson's text was changed
translations: .venv/installed
	$(BIN)/python -m amp_tutorial.course.translation

# All generated parts of README.md and docs/, from the code, the records and the figures that are there
docs: .venv/installed
	$(BIN)/python -m benchmarks --table --readme docs/speed.md > .venv/speed.md
	$(BIN)/python -m amp_tutorial.reports.pages

results: .venv/installed
	$(BIN)/amp-tutorial sweep data/sweeps/results.yaml --out $(OUT)/results --jobs $(JOBS)
	$(BIN)/python -m amp_tutorial.reports.summary --runs $(OUT)/results
	$(BIN)/python -m amp_tutorial.reports.pages

# Systems × ratios × models × seeds; interrupt it, and the same command goes on
leaderboard: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/amp-tutorial sweep data/sweeps/leaderboard.yaml --out $(OUT)/leaderboard --jobs $(JOBS)
	$(BIN)/python -m amp_tutorial.reports.leaderboard --runs $(OUT)/leaderboard
	$(BIN)/python -m amp_tutorial.reports.pages

# The systems on a real model, some hours on two cores: make real HF_HUB_OFFLINE=0; with copies of the texts and no hub
# make real SWEEP="-p local_copies=FOLDER"
real: .venv/installed
	$(BIN)/amp-tutorial fetch smollm2-135m
	$(BIN)/amp-tutorial sweep data/sweeps/real.yaml --out $(OUT)/real -p kept_scores=$(OUT)/scores $(SWEEP)
	$(BIN)/python -m amp_tutorial.reports.real --runs $(OUT)/real $(SWEEP)
	$(BIN)/python -m amp_tutorial.reports.pages

# Ratios of time and memory, some six minutes on a quiet machine; only a part: make benchmarks PARTS=scoring
benchmarks: .venv/installed
	$(BIN)/python -m benchmarks $(if $(PARTS),--parts $(PARTS)) --readme docs/speed.md
	$(BIN)/python -m amp_tutorial.reports.pages

# After an upgrade of what is in .venv: pin what is there now.
constraints: .venv/installed
	head -n 1 constraints.txt > .venv/pins
	$(BIN)/pip freeze --all --exclude-editable | sed -e 's/+.*//' -e '/^pip==/d' >> .venv/pins
	mv .venv/pins constraints.txt

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[lab,site,test]"
	touch $@

# What a machine without this repository installs, Colab's and Kaggle's first: code, data, models, in one file
wheel: .venv/installed
	$(BIN)/pip wheel --disable-pip-version-check --no-deps --no-build-isolation -w dist .

clean:
	rm -rf .venv dist $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
