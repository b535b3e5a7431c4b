# What people who work on the project run.

.PHONY: lint test test-all docs wheel

lint:  ## format, lint, import layers
	tools/check.sh --quick

test:  ## the quick tests, on all cores
	python -m pytest -n auto

test-all:  ## all tests
	python -m pytest -n auto -m "slow or not slow"

docs:  ## the pages in site/
	mkdocs build --strict

wheel:  ## lint, and the wheel with a check of what is in it
	tools/check.sh --no-tests
