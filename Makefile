# Every verb works on a fresh checkout with Python 3.11-3.13, git and make; .venv is made on first use.
#   make demo PHOTOS=~/photos     class folders of yours           make test ARGS="-k gate"     some of the tests
#   make PYTHON=/path/to/python3.12 install                        make TMPDIR=/path demo       another temporary folder
.PHONY: help install dev demo test test-all chaos docs lint format types audit bench lock clean
.DEFAULT_GOAL := help

# The first Python that runs and has a fitting version, else the first that can say it is not.
CANDIDATES := $(if $(PYTHON),'$(PYTHON)',.venv/bin/python python3.11 python3.12 python3.13 python3 python)
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
TELLS := import sys; sys.exit(sys.version_info < (3, 6))
python = $(shell for p in $(CANDIDATES); do "$$p" -c '$(FITS)' 2>/dev/null && echo "$$p" && exit; done; \
                 for p in $(CANDIDATES); do "$$p" -c '$(TELLS)' 2>/dev/null && echo "$$p" && exit; done)

# Nothing is written outside this folder, and a home that is read-only or missing does no harm.
cache := $(CURDIR)/.cache
export SSCLASS_HOME := $(cache)
export XDG_CACHE_HOME := $(cache)/xdg
export XDG_DATA_HOME := $(cache)/xdg
export XDG_STATE_HOME := $(cache)/xdg
export MPLCONFIGDIR := $(cache)/matplotlib
export KERAS_HOME := $(cache)/keras
unexport PYTHONPATH PYTHONHOME

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' Makefile | awk -F': ' '{printf "make %-9s %s\n", $$1, $$2}'

install: ## make .venv from requirements.lock
	@$(call run_install)

dev:
	@$(call run_install,--dev)

define run_install
p='$(python)'; if [ -z "$$p" ]; then \
	echo "preflight: no working Python $(if $(PYTHON),at $(PYTHON),on the PATH); install 3.11, 3.12 or 3.13" >&2; exit 2; \
fi; "$$p" scripts/install.py $(1)
endef

demo: install ## run the pipeline end to end on PHOTOS=DIR (class folders), or on drawings
	@.venv/bin/ssclass demo $(if $(PHOTOS),--photos "$(PHOTOS)") $(ARGS)

test: dev ## run the tests; ARGS="-k gate" for some of them
	@CHAOS_SEED=$${CHAOS_SEED:-7} .venv/bin/pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-all: dev ## run the tests, the slow ones too
	@.venv/bin/pytest -n 2 --dist loadfile $(ARGS)

chaos: dev ## kill, stop and fail everything, at random: CHAOS_SECONDS=1200 CHAOS_SEED=n
	@CHAOS_SECONDS=$${CHAOS_SECONDS:-1200} .venv/bin/pytest -p no:cacheprovider tests/chaos $(ARGS)

docs: dev ## build the documentation into site/; a broken link fails
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

lint: dev ## check style and format
	@.venv/bin/ruff check && .venv/bin/ruff format --check

format: dev ## mend style and format where that is mechanical
	@.venv/bin/ruff check --fix; .venv/bin/ruff format

types: dev ## check types
	@.venv/bin/mypy

audit: dev ## write the parts list sbom.json (CycloneDX), and report known vulnerabilities of what is pinned
	@.venv/bin/cyclonedx-py requirements requirements.lock --output-file sbom.json
	@.venv/bin/pip-audit --requirement requirements.lock --disable-pip --no-deps --progress-spinner off

bench: install ## measure the time budgets
	@.venv/bin/python -m benchmarks $(ARGS)

# The locks name no index. Pins are kept where they still fit: delete a lock to have everything newest.
COMPILE = .venv/bin/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11
lock: install ## bring the locks up to pyproject.toml
	$(COMPILE) pyproject.toml -o requirements.lock
	$(COMPILE) --group install -c requirements.lock -o requirements-install.lock
	$(COMPILE) --group dev -c requirements.lock -c requirements-install.lock -o requirements-dev.lock \
		$$(sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p' requirements.lock requirements-install.lock)
	echo "tensorflow[and-cuda] ; sys_platform == 'linux'" | $(COMPILE) - -c requirements.lock -o requirements-gpu.lock \
		$$(sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p' requirements.lock)

clean: ## delete .venv and all caches
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis dist site
