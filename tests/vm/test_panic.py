# SPDX-License-Identifier: Apache-2.0
"""`on violation panic`, in a machine of its own: it stops before the instruction, and says which and why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts.fetch_kernels import Kernel
from tests.vm import kbuild, policies
from tests.vm.machine import run
from tests.vm.test_machine import image

__all__ = ["image"]

GUEST = """
from o2cc.runtime import loader
from o2cc.runtime.loader import LoadOptions
from tests.vm.guest.enforcer_support import load_module
from tests.vm.guest.victim_support import PROPER, Victim
from tests.vm.policies import guest_object
load_module("o2c")
victim = Victim()
part = LoadOptions(wanted=lambda site: site.function == "store_word", accept_gaps=True)
loader.load(guest_object("panic").read_bytes(), options=part)
print("loaded", flush=True)
victim.run(3)
print("the attack went through", victim.state(), flush=True)
"""


@pytest.mark.timeout(300)
def test_a_violation_stops_the_machine_and_names_site_and_policy_line(image: Kernel, tmp_path: Path) -> None:
    for source in kbuild.module_sources():
        kbuild.build_module(image, source)
    policies.prepare(image)
    outcome = run(image, [sys.executable, "-c", GUEST], results=tmp_path / "r", timeout=240)
    assert outcome.ending == "panic", outcome.output
    assert outcome.output == "loaded\n"
    (said,) = {line.partition("] ")[2] for line in outcome.splats if "not syncing" in line}
    line = policies.variant_text("panic").splitlines().index("compartment victim {") + 1
    assert f"o2c: victim: violation of line {line} of the policy at store_word+0x5" in said
