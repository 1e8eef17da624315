# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS := $(VENV)/.docs

.PHONY: install demo gallery test soak lint docs bench clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch -e '.[dev,ray]'
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

$(DOCS): $(READY) pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $(DOCS)

docs: $(DOCS)
	$(BIN)/python docs/make_formulas.py --check
	$(BIN)/python docs/make_contract.py --check
	$(BIN)/python docs/make_time.py --check
	$(BIN)/python docs/make_readme.py --check
	$(BIN)/python docs/make_notes.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site: build/docs/index.html"

gallery: $(READY)
	$(BIN)/glass gallery --out site

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) runs build *.egg-info
