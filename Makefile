# Short names for the scripts in launch/.
.PHONY: setup quickstart test lint format types

setup:
	./launch/setup

quickstart:
	./launch/quickstart

test:
	./launch/test

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

types: setup
	.venv/bin/mypy
