# `make book` builds the site, `make test` runs the tests; the first of either sets up .venv, once.
PYTHON ?= python3
ARGS ?=

# An environment that is activated is not the one that is used here.
unexport VIRTUAL_ENV

.PHONY: book test lint bench clean
.DELETE_ON_ERROR:

book: .venv/.ready
	.venv/bin/margins book $(ARGS)

test: .venv/.ready
	.venv/bin/python -m pytest $(ARGS)

lint: .venv/.ready
	.venv/bin/ruff check
	.venv/bin/margins tidy --check

# Speed and strength beside other libraries, which it installs apart from .venv: benchmarks/README.md. It takes hours.
bench: .venv/.ready
	.venv/bin/python -m benchmarks $(ARGS)

# Made last, so that a set-up that was interrupted is taken up again.
.venv/.ready: requirements.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit(\
	    f"Python 3.11, 3.12 or 3.13 is needed, but $(PYTHON) is {v[0]}.{v[1]}; name one: make PYTHON=python3.12")'
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# What make made, and the site; downloads, checkpoints and quick results stay in data/cache.
clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis data/cache/book data/cache/run
