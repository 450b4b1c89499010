# make reproduce [PAPER=gated-attention] [SCALE=laptop]   set up, then measure a paper's claims on this machine
# make test                                               set up, then lint, types and every test
# make site                                               set up, then the static site, in site/
PAPER  ?= gated-attention
SCALE  ?= laptop
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
NATIVE := CMakeLists.txt $(wildcard native/*)

export MPLBACKEND := Agg

.PHONY: reproduce test lint types stubs bench site clean help
help:
	@sed -n 's/^# //p' Makefile

reproduce: $(VENV)/.installed
	$(BIN)/softgate reproduce $(PAPER) --scale $(SCALE)

test: $(VENV)/.installed-dev lint types
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# The stub beside each room's lazy __init__ tells editors and type checkers what the room offers.
stubs: $(VENV)/.installed-dev
	$(BIN)/python tools/stubs.py

site: $(VENV)/.installed
	$(PIP) --no-build-isolation --editable '.[docs]'
	$(BIN)/softgate report --out site

bench: $(VENV)/.installed-dev
	for site in $$($(BIN)/softgate bench); do $(BIN)/softgate bench $$site || exit 1; done

# torch goes in first and alone: asked for together with others, the resolver may take a build with gigabytes of CUDA.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "softgate needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12" >&2; exit 3; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml $(NATIVE)
	$(PIP) scikit-build-core nanobind cmake ninja
	$(PIP) --no-build-isolation --editable .
	@touch $@

# timm asks for torchvision, whose resolver would replace the CPU torch by gigabytes of CUDA; both go in alone;
# pycocotools, of the same extra, needs only what is there.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --no-build-isolation --editable '.[dev,docs,data,hf,ray,rl]'
	$(PIP) --no-deps timm torchvision pycocotools
	@touch $@

clean:
	rm -rf build site $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
