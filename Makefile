# make book     execute the chapters live and build the book
# make html     build the book from the committed outputs
# make test     everything that must hold before a change is shared
# make portable  tests and chapters as other processors would run them (about two hours)
# make refresh  rewrite the chapters' committed outputs (CHAPTERS="01_five_minutes" for some)
# make benchmark  time and memory beside other libraries (half an hour on a quiet machine)
# make throughput  what the training loop adds, what processes save (ten minutes, a quiet machine)
# make device-check  the library on a device against the CPU; installs nothing (PYTHON with torch)
# make wheel    the library as a wheel, in dist/; make archive the built book beside it
# make wheel-check  the wheel in fresh environments: oldest, newest, alone (15 GB, 10 minutes)
# make library  the library's tests beside an oldest or a newest PyTorch (SET=oldest)
#
# Settings: PYTHON=<Python 3.11>  THREADS=<processor cores to use>  DEVICE=<cpu or cuda>

SHELL := bash
.SHELLFLAGS := -eo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

PYTHON ?= python3.11
THREADS ?= 2
DEVICE ?= cpu
CHAPTERS ?=

VENV := .venv
BIN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

export OMP_NUM_THREADS := $(THREADS)
# Threads of a unit test; THREADS tests run at once.
UNIT_THREADS ?= 1
# Idle threads sleep, because spinning ones slow a shared machine down many times over.
export OMP_WAIT_POLICY := PASSIVE
export DEVICE
# The book is built and compared on an empty store, so that no study of one's own leaks into it.
export PAPERKIT_STORE := $(CURDIR)/_build/empty-store
# The user's own kernels and IPython settings are kept out of the runs.
export JUPYTER_PREFER_ENV_PATH := 1
export IPYTHONDIR := $(CURDIR)/_build/ipython
export PYDEVD_DISABLE_FILE_VALIDATION := 1

# $(call stage,what it is,command,what to do when it fails)
define stage
	@echo; echo "== $(1)"; started=$$SECONDS; \
	if $(2); then echo "== $(1): passed in $$((SECONDS - started)) s"; \
	else echo "make: $(1) failed: $(3)" >&2; exit 1; fi
endef

# Instructions of other processors, as far as they can be asked for on this one.
SETTINGS := ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2
SETTINGS += MKL_CBWR=COMPATIBLE MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=SSE41 ONEDNN_MAX_CPU_ISA=AVX2
SETTINGS += THREADS=1 THREADS=2+UNIT_THREADS=2
# The oldest instructions, all together. The first chapter trains, so only make portable runs it.
FOREIGN := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=1
FOREIGN_TESTS := tests/linalg tests/optim tests/estimators/test_information_geometry.py tests/test_examples.py
FOREIGN_CHAPTERS := $(filter-out notebooks/01_%,$(wildcard notebooks/*.ipynb))

define newline


endef

.PHONY: help environment book html refresh test format lint types unit foreign smoke outputs browser
.PHONY: zoo portable lock clean moved benchmark throughput wheel archive wheel-check library device-check

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

book: environment
	$(call stage,book from live runs,rm -rf $(PAPERKIT_STORE) && $(BIN) -m paperkit.cli book --jobs $(THREADS),do what the last sentence above says and run make book again.)

html: environment
	$(call stage,book from the committed outputs,$(BIN) -m paperkit.cli html,do what the last sentence above says and run make html again.)

refresh: environment
	$(call stage,committed outputs,rm -rf $(PAPERKIT_STORE) && $(BIN) -m paperkit.cli refresh --jobs $(THREADS) $(CHAPTERS),do what the last sentence above says and run make refresh again.)

test: environment format lint types unit foreign smoke outputs html browser
	@echo; echo "== make test: everything passed"

format: environment
	$(call stage,formatting,$(BIN) -m ruff format --check .,run $(BIN) -m ruff format . and look at the change.)

lint: environment
	$(call stage,lint,$(BIN) -m ruff check .,correct the lines named above.)
	$(call stage,imports between the rooms,$(VENV)/bin/lint-imports --no-logo --cache-dir _build/imports,move the code named above to the room that it belongs to; the order of the rooms stands in pyproject.toml.)

types: environment
	$(call stage,types,$(BIN) -m mypy,correct the lines named above.)

unit: environment
	$(call stage,unit tests on $(DEVICE),OMP_NUM_THREADS=$(UNIT_THREADS) $(BIN) -m pytest -q -n $(THREADS) --dist worksteal tests,correct the code or the test named above; one test alone: $(BIN) -m pytest <its name>.)

foreign: environment
	$(call stage,numerical tests under another processor's instructions,env $(FOREIGN) $(BIN) -m pytest -q -n $(THREADS) $(FOREIGN_TESTS),a threshold or a comparison rests on this processor's round-off; correct it. Again: $(FOREIGN) $(BIN) -m pytest <its name>.)
	$(call stage,committed outputs under another processor's instructions,rm -rf $(PAPERKIT_STORE) && env $(FOREIGN) $(BIN) -m pytest -q -n $(THREADS) --dist loadfile --nbval $(FOREIGN_CHAPTERS) -p no:cacheprovider,print only what every processor would print.)

# Every setting starts from a fresh store.
portable: environment
	$(foreach setting,$(SETTINGS),$(call stage,$(subst +, ,$(setting)),rm -rf $(PAPERKIT_STORE) && $(MAKE) --no-print-directory unit smoke outputs $(subst +, ,$(setting)),read what failed above; again: make unit smoke outputs $(subst +, ,$(setting)))$(newline))

zoo: environment
	$(call stage,public architectures on $(DEVICE),OMP_NUM_THREADS=1 $(BIN) -m pytest -q -n $(THREADS) tests/zoo,correct the code or the test named above.)

smoke: environment
	$(call stage,chapters at the smoke profile on an empty store,$(BIN) -m paperkit.cli smoke --jobs $(THREADS) $(CHAPTERS),correct the cell named above in its .py file.)

outputs: environment
	$(call stage,committed outputs against new runs,rm -rf $(PAPERKIT_STORE) && $(BIN) -m pytest -q -n $(THREADS) --dist loadfile --nbval notebooks -p no:cacheprovider,if the new numbers are right run make refresh and look at the change; otherwise correct the code.)

browser: html
	$(call stage,book in a browser,$(BIN) -m paperkit.cli browse --jobs $(THREADS),correct the pages named above.)

environment: $(STAMP)

# The stamp holds the name of its folder, so that a clone that was moved is installed again.
ifneq ($(file < $(STAMP)),$(CURDIR))
$(STAMP): moved
moved:
endif

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: there is no $(PYTHON); install Python 3.11 (Debian 12: sudo apt-get install python3.11 python3.11-venv) or name one with make PYTHON=<path>." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "make: $(PYTHON) is not Python 3.11, for which the environment is locked; name one with make PYTHON=<path>." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) cannot make virtual environments; run sudo apt-get install python3.11-venv and try again." >&2; exit 1; }
	@echo "== environment: installing requirements.lock into $(VENV) (the first time: 1 to 5 minutes, about 6 GB)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN) -m pip install --disable-pip-version-check --progress-bar on --no-deps -r requirements.lock | { grep --line-buffered -v '^Requirement already satisfied' || true; } || { echo "make: the installation failed; see the message above, then run the same command again." >&2; exit 1; }
	@$(BIN) -m pip install --disable-pip-version-check --quiet --no-build-isolation --no-deps --editable .
	@mkdir -p _build
	@printf %s '$(CURDIR)' > $(STAMP)
	@echo "== environment: ready"

# After a change of the ranges in pyproject.toml this target resolves them and writes the lock.
# UPGRADE names releases to take instead of the locked ones.
# Soupsieve is held below 3, which needs a newer Python 3.11 than that of Debian 12. A test checks
# that no other package in the lock does.
UPGRADE ?=
lock:
	$(BIN) -m pip install --editable '.[dev]' 'soupsieve<3' $(UPGRADE)
	$(BIN) -m pip check
	@{ sed -n '/^#/p' requirements.lock; $(BIN) -m pip freeze --all --exclude-editable --exclude pip --exclude paperkit | sed -E 's/^((nvidia|cuda)-.*|triton==.*)$$/\1 ; platform_machine == "x86_64" and sys_platform == "linux"/'; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock

# Any Python from 3.11 to 3.13 builds the wheel, in an environment of pip's own. What an earlier build
# left in build/ would go into the wheel, so it is deleted first.
wheel:
	@rm -rf build dist/*.whl
	@$(PYTHON) -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir dist .
	@rm -rf build
	@ls dist/*.whl

# The built book, for a release's page.
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
archive: html
	@mkdir -p dist
	@tar -C _build/committed/_build -czf dist/paperkit-book-$(VERSION).tar.gz html
	@ls dist/paperkit-book-$(VERSION).tar.gz

# Fresh environments beside the locked one. NEWEST is any Python from 3.11 to 3.13.
NEWEST ?= $(PYTHON)
ENVIRONMENTS := _build/wheel-check
WHEEL_CHECK = $(PYTHON) tests/wheel_check.py dist/*.whl --folder $(ENVIRONMENTS)
wheel-check: wheel
	$(call stage,the wheel beside the oldest packages,$(WHEEL_CHECK) oldest --python $(PYTHON),read the error above.)
	$(call stage,the wheel beside the newest packages,$(WHEEL_CHECK) newest --python $(NEWEST),read the error above.)
	$(call stage,the wheel without the packages of the book,$(WHEEL_CHECK) alone --python $(NEWEST),read the error above.)

SET ?= oldest
LIBRARY_TESTS := tests/linalg tests/network tests/curvature tests/linearize tests/estimators tests/bounds
LIBRARY_TESTS += tests/optim tests/statistics tests/models tests/training tests/monitor tests/test_training.py tests/test_checkpoint.py
LIBRARY_TESTS += tests/test_arguments.py tests/test_arguments_of_every_public_name.py
library: wheel
	$(call stage,the wheel beside the $(SET) packages,$(WHEEL_CHECK) $(SET) --python $(PYTHON),read the error above.)
	$(call stage,the library beside the $(SET) packages,OMP_NUM_THREADS=$(UNIT_THREADS) $(ENVIRONMENTS)/$(SET)/bin/python -m pytest -q -n $(THREADS) $(LIBRARY_TESTS),correct the code or raise the range in pyproject.toml.)

# Nothing is installed: PYTHON has its own PyTorch; without PYTHON, the locked environment's runs.
# The record goes to results/device.json from a GPU, to _build/device.json from a CPU.
DEVICE_PYTHON = $(if $(filter file,$(origin PYTHON)),$(BIN),$(PYTHON))
device-check:
	$(call stage,the library on $(DEVICE) against the CPU,$(DEVICE_PYTHON) -m benchmarks.device_check --device $(DEVICE),correct what the sentences above name.)

# The benchmark's threads spin while they wait, as they do in any program by default. If they slept,
# each small operation would take a third longer.
# The libraries to compare with are installed beside the locked environment, which stays as it is.
BENCHMARK := _build/benchmark-venv
PACKAGES := lib/python3.11/site-packages

$(BENCHMARK)/.installed: benchmarks/requirements.txt $(STAMP)
	@echo "== benchmark: installing benchmarks/requirements.txt into $(BENCHMARK)"
	@$(BIN) -m venv --clear --without-pip $(BENCHMARK)
	@echo "import site; site.addsitedir('$(CURDIR)/$(VENV)/$(PACKAGES)')" > $(BENCHMARK)/$(PACKAGES)/environment.pth
	@$(BIN) -m pip --python $(BENCHMARK)/bin/python install --disable-pip-version-check --quiet --no-deps -r benchmarks/requirements.txt
	@touch $@

benchmark: environment $(BENCHMARK)/.installed
	env -u OMP_WAIT_POLICY $(BENCHMARK)/bin/python -m benchmarks --device $(DEVICE) --output results/benchmarks.json
	$(BENCHMARK)/bin/python -m benchmarks.render

throughput: environment
	env -u OMP_WAIT_POLICY MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456 $(BIN) -m benchmarks.throughput --output results/throughput.json

clean:
	rm -rf _build
