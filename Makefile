# Everything runs inside .venv, made on first use; nothing downloads a model or data.
PYTHON ?= python3
DEMO ?= --out out/demo
BENCH ?= --out out/bench
INSTALLED = .venv/.installed

.PHONY: demo test test-slow check bench clean

demo: $(INSTALLED)
	.venv/bin/steerlens demo $(DEMO)

test: check
	OMP_NUM_THREADS=1 .venv/bin/pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(INSTALLED)
	.venv/bin/pytest -m slow

bench: $(INSTALLED)
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	.venv/bin/python -m pip install --quiet --no-deps --requirement tests/benchmarks/requirements.txt
	.venv/bin/python tests/benchmarks/run.py $(BENCH)

check: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

$(INSTALLED): pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(INSTALLED)

clean:
	rm -rf .venv out build dist
