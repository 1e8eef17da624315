# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install demo gallery test soak lint bench clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch -e '.[dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/glass run tour

test: $(READY)
	$(BIN)/python -m pytest -q -n auto --dist loadgroup

soak: $(READY)
	$(BIN)/python -m pytest -q -m soak --timeout 0 -n auto

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

gallery: $(READY)
	$(BIN)/glass gallery --out site

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) runs build *.egg-info
