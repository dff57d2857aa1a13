# SPDX-License-Identifier: Apache-2.0
"""What passes make of a module does in the kernel what the module as it was means to the reference interpreter."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from o2cc.bpf.emit import emit_test_object
from o2cc.bpf.info import read
from o2cc.ir.interpreter import Interpreter
from o2cc.ir.machine import Machine
from o2cc.kernel.description import Block
from o2cc.passes.manager import PassContext, run_pipeline
from o2cc.passes.merge_checks import MergeChecks
from o2cc.passes.registry import default_pipeline
from tests.unit.bpf import generated
from tests.unit.passes import targets
from tests.unit.passes.test_merge_checks import LIBRARY_MODULE, VALUES, with_sites
from tests.vm.guest.agreement import SOURCES, assert_alike, machine_of, pt_regs, records
from tests.vm.guest.bpf_calls import loaded


@pytest.mark.parametrize(
    "seed", [200, 201, *(pytest.param(n, marks=pytest.mark.full) for n in range(202, 212))]
)
def test_optimized_checks_agree_with_the_interpreter(seed: int, tmp_path: Path) -> None:
    module = generated.generate(seed, checks=8, sites_each=2)
    context = PassContext()
    optimized = run_pipeline(module, default_pipeline(context) * 2, context)
    assert optimized != module
    data = emit_test_object(optimized, sources=SOURCES).data
    interpreter = Interpreter(machine_of(module))
    with loaded(data, tmp_path, f"optimized_{seed}") as object_:
        assert_alike(object_, data, module, interpreter, random.Random(seed))
        assert records(object_) == [event.fields for event in interpreter.machine.events]


def test_merged_checks_report_what_the_single_ones_would(tmp_path: Path) -> None:
    places = [(8, 8), (0, 4), (24, 2), (-16, 8), (40, 1)]
    sites = [targets.store(n + 1, value=0, displacement=d, size=s) for n, (d, s) in enumerate(places)]
    target = targets.description(targets.function("f", [Block(0, 0x40, ())], sites, values=VALUES))
    single = with_sites(target, LIBRARY_MODULE)
    context = PassContext(target, control_flow_kept=True, skips_violations=False)
    merged = run_pipeline(single, [MergeChecks()], context)
    (leader,) = [site for site in merged.sites if site.covered_by is None]
    data = emit_test_object(merged, sources={"library.ir": ""}).data
    programs = {site.number: site.program for site in read(data).sites}
    assert [bool(programs[site.number]) for site in merged.sites] == [True, False, False, False, False]
    machine = Machine(single)
    interpreter = Interpreter(machine)
    with loaded(data, tmp_path, "merged") as object_:
        for base in (0x1000, 0x8000_0000_0000_1000, 2**64 - 24, 0):
            registers = {"rbx": base, "rsp": 0x9000}
            answers = [interpreter.run_site(site.number, registers).value for site in single.sites]
            got = object_.run(programs[leader.number], pt_regs(registers))
            assert got == (1 if 1 in answers else max(answers))
        assert sorted(records(object_, 65536)) == sorted(event.fields for event in machine.events)
        assert len(machine.events) == 4 * len(places)
