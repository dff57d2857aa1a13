# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` are all that a newcomer needs; the other targets are parts of them.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The kernel whose bundled description the demonstration compiles for.
DEMO_KERNEL := $(notdir $(firstword $(wildcard descriptions/6.1.*)))
# Kernel series that the VM part boots, and the seconds that each may take.
KERNELS := 6.1 6.12
VM_BUDGET := 1500
VM_FLAGS :=

.PHONY: demo test check test-unit test-vm test-full demo-vm tools module clean

$(STAMP): pyproject.toml
	@python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Python 3.11 or later with its venv module is needed: apt-get install python3-venv" >&2; exit 1; }
	python3 -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@

# Compile the SCTP policy against the bundled description: no root, no kernel, no network but the installer's.
demo: $(STAMP)
	@mkdir -p build
	$(BIN)/o2cc examples/sctp.o2c --kernel $(DEMO_KERNEL) --degrade report -o build/sctp.bpf.o --stats build/sctp.stats.json
	@$(BIN)/o2c stats build/sctp.stats.json

# Everything; fetches and installs what the VM part needs (with root).
test: check test-unit test-vm

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test-unit: $(STAMP) tools
	$(BIN)/pytest -n 2 --dist loadfile

# A machine for each kernel, side by side: an emulated machine uses one processor.
test-vm: $(STAMP) tools
	@$(MAKE) --no-print-directory -j2 $(KERNELS:%=test-vm-%)

test-vm-%: $(STAMP)
	$(BIN)/pytest tests/vm -p no:xdist --kernel $* --vm-budget $(VM_BUDGET) $(VM_FLAGS)

# Long runs: whole policies, many cycles. Hours under emulation.
test-full:
	$(MAKE) test-vm VM_BUDGET=10000 VM_FLAGS=--full

# Packages of Debian 12 that the tests use (the assembler, QEMU, ...); needs root, says so otherwise.
tools:
	@if [ "$$(id -u)" = 0 ]; then scripts/install-test-tools; \
	else echo "not root: using the test tools that are installed"; fi

# An attack in a VM, without and with a policy.
demo-vm: $(STAMP) tools
	$(BIN)/python -m scripts.demo_vm

# The enforcement module for the running kernel.
module:
	$(MAKE) -C bpf_runtime/module

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
