# Every target sets up what it needs, on a fresh Debian or Ubuntu with Python 3.11 or newer.
#
#   make demo          the main job on real data, one worker killed on the way
#   make test          all tests (CEPH=1: also against a real Ceph gateway; WITH_TORCH=1: also of tensors;
#                      CI=true implies both)
#   make check         lint, types, house rules, 300 simulated histories: what CI runs
#   make sim SEED=7    replay one simulated history; without SEED, search for a bad one
#   make stress        real processes, killed, stopped and lied to
#   make bench         against the other tools of the field
#   make setup         only the environments
#   make clean         remove what these targets made

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
MINISTACK_VENV := .venv-ministack
PY := $(VENV)/bin/python
OTHER_VENV := .venv-other
EXTRAS := numpy,demo,simulate,test,check,bench

# The first interpreter that is new enough. PYTHON=... overrides it.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

# The stand-in for S3 lives apart, because it pins its own botocore.
export DIBS_MINISTACK_PYTHON := $(CURDIR)/$(MINISTACK_VENV)/bin/python

# As root, plainly; else with sudo when it asks for no password; else not at all.
AS_ROOT = $(shell if [ "$$(id -u)" = 0 ]; then echo env; elif sudo -n true 2>/dev/null; then echo sudo -n; fi)
APT_INSTALL = $(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends

# Another minor version of Python, where the machine has one: keys must agree between them.
OTHER_PYTHON ?= $(shell mine=$$($(PYTHON) --version | cut -d. -f2); \
	for p in python3.11 python3.12 python3.14 python3.13 $$HOME/.pyenv/versions/3.1[1-9].*/bin/python; do \
	other=$$($$p --version 2>/dev/null | cut -d. -f2) || continue; \
	if [ -n "$$other" ] && [ "$$other" != "$$mine" ]; then found=$$p; fi; done; echo "$$found")
ifneq ($(OTHER_PYTHON),)
export DIBS_OTHER_PYTHON := $(CURDIR)/$(OTHER_VENV)/bin/python
endif

# What runs on a CPU of PyTorch comes without its GPU libraries, which are gigabytes.
TORCH := torch==2.13.0
TORCH_NEEDS := filelock typing-extensions sympy networkx jinja2 fsspec

CEPH_PACKAGES := ceph-mon ceph-osd radosgw ceph-common
ifeq ($(CI),true)
CEPH ?= 1
WITH_TORCH ?= 1
endif

.PHONY: help demo test check bench sim stress setup services ceph torch compiler clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.installed
	@$(PY) -m dibs demo

test: $(VENV)/.installed services
	$(PY) -m pytest $(ARGS)

check: $(VENV)/.installed
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_architecture.py
	$(PY) -m dibs simulate --seeds 300

sim: $(VENV)/.installed
	@$(PY) -m dibs simulate $(if $(SEED),--seed $(SEED))

bench: $(VENV)/.installed services
	$(PY) -m bench $(ARGS)

stress: CEPH := 1
stress: $(VENV)/.installed services
	$(PY) -m stress $(ARGS)

setup: $(VENV)/.installed $(MINISTACK_VENV)/.installed

services: $(MINISTACK_VENV)/.installed $(if $(OTHER_PYTHON),$(OTHER_VENV)/.installed) compiler ceph torch

# Installed again only when pyproject.toml has changed.
$(VENV)/.installed: pyproject.toml
	@$(call make_venv,$(VENV))
	@echo "dibs: installing into $(VENV) (once)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

$(MINISTACK_VENV)/.installed:
	@$(call make_venv,$(MINISTACK_VENV))
	@echo "dibs: installing MiniStack into $(MINISTACK_VENV) (once)"
	@$(MINISTACK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check ministack
	@touch $@

$(OTHER_VENV)/.installed: pyproject.toml
	@$(OTHER_PYTHON) -m venv --clear $(OTHER_VENV)
	@echo "dibs: installing into $(OTHER_VENV) (once): $$($(OTHER_PYTHON) --version)"
	@$(OTHER_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[numpy]'
	@touch $@

torch:
	@if [ '$(WITH_TORCH)' != 1 ] || $(PY) -c 'import torch' 2>/dev/null; then exit 0; fi; \
	echo 'dibs: installing $(TORCH) (once)'; \
	$(PY) -m pip install --quiet --disable-pip-version-check $(TORCH_NEEDS); \
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps $(TORCH)

# A virtual environment with pip in it; a half-made one is made again.
define make_venv
	if [ -z '$(PYTHON)' ]; then \
		echo 'dibs needs Python 3.11 or newer; python3 here is: '"$$(python3 --version 2>&1 || true)" >&2; \
		echo 'Install a newer one, or name it: make PYTHON=/path/to/python3.12 ...' >&2; exit 1; fi; \
	if $(1)/bin/python -m pip --version >/dev/null 2>&1; then exit 0; fi; \
	if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		if [ -z '$(AS_ROOT)' ] || ! command -v apt-get >/dev/null; then \
			echo 'Python has no venv module here. On Debian or Ubuntu: sudo apt-get install python3-venv' >&2; exit 1; fi; \
		version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		$(AS_ROOT) apt-get update -qq; \
		$(APT_INSTALL) python$$version-venv >/dev/null || $(APT_INSTALL) python3-venv >/dev/null; fi; \
	$(PYTHON) -m venv --clear $(1)
endef

# A C compiler builds the preload shim that fakes a full disk and a slow one.
compiler:
	@if command -v gcc >/dev/null; then exit 0; fi; \
	if [ -z '$(AS_ROOT)' ] || ! command -v apt-get >/dev/null; then \
		echo 'skipped: the tests that need gcc (no gcc, and no right to install it)'; exit 0; fi; \
	$(AS_ROOT) apt-get update -qq; $(APT_INSTALL) gcc libc6-dev >/dev/null

ceph:
	@if [ '$(CEPH)' != 1 ]; then exit 0; fi; \
	if command -v radosgw >/dev/null && command -v ceph-mon >/dev/null && command -v ceph-osd >/dev/null; then exit 0; fi; \
	if [ -z '$(AS_ROOT)' ] || ! command -v apt-get >/dev/null; then \
		echo 'skipped: the tests that need Ceph (no right to install: $(CEPH_PACKAGES))'; exit 0; fi; \
	echo 'dibs: installing $(CEPH_PACKAGES) (once)'; \
	$(AS_ROOT) apt-get update -qq; $(APT_INSTALL) $(CEPH_PACKAGES) >/dev/null

clean:
	rm -rf $(VENV) $(MINISTACK_VENV) $(OTHER_VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .services
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
