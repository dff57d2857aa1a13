# SPDX-License-Identifier: Apache-2.0
"""Stores on the stack: the walk over made-up stacks of real functions."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from o2cc.ir import nodes as ir
from o2cc.kernel.description import Function, Site
from o2cc.lower.places import BY_FRAME_POINTER, UNKNOWN_HEIGHT, frame_at
from o2cc.simulation.world import STACK_POINTER
from tests.unit.lower.confined import STORE_DENIED, Confined, confined, sctp

OUTSIDE = 0xFFFF_FFFF_8123_4567  # a return address in the kernel


@pytest.fixture
def kernel() -> Confined:
    found = confined()
    found.world.machine.memory.write(STACK_POINTER - 4096, bytes(3 * 4096))
    return found


@dataclass(frozen=True)
class Standing:
    """A store site in a function whose frame is known there."""

    function: Function
    place: Site
    site: ir.Site

    @property
    def height(self) -> int:
        assert self.place.stack_height is not None
        return self.place.stack_height

    @property
    def slot(self) -> int:
        """Where the return address lies."""
        return STACK_POINTER + self.height

    @property
    def saved(self) -> int:
        return min(self.function.frame, self.height)


def _standing(kernel: Confined, *, saved: int = 16, room: int = 24, keeps_bp: bool | None = None) -> Standing:
    """A site with at least so many bytes of saved registers, and of room below them."""
    for site in kernel.module.sites:
        if site.kind is not ir.SiteKind.STORE:
            continue
        function = sctp().function_by_name[site.function]
        place = function.site_by_offset[site.offset]
        height = place.stack_height
        if function.parent or height is None or function.frame < saved or height - function.frame < room:
            continue
        if keeps_bp is not None and keeps_bp != any(register == "rbp" for register, _ in function.saved):
            continue
        return Standing(function, place, site)
    raise AssertionError("no such site")


def _caller(*, room: int = 24) -> tuple[Function, Site]:
    """A call in a function with at least so many bytes below its saved registers."""
    for function in sctp().functions:
        if function.parent or function.initial or function.section != ".text":
            continue
        for site in function.sites:
            height = site.stack_height
            if site.kind == "call" and height is not None and height - function.frame >= room:
                return function, site
    raise AssertionError("no such call")


def _store(kernel: Confined, where: Standing, address: int, size: int = 8, bp: int = 0) -> str:
    kernel.world.machine.now += 1 << 31
    outcome = kernel.world.interpreter.run_function(
        "check_store", address, size, where.site.number, STACK_POINTER, bp
    )
    assert kernel.kinds(outcome) in ([], [STORE_DENIED])
    return "deny" if kernel.kinds(outcome) else "allow"


def _return_to(kernel: Confined, slot: int, function: Function, call: Site) -> None:
    start = kernel.world.sections[function.section] + function.offset
    kernel.world.machine.memory.write_word(slot, start + call.offset + call.length)


def test_the_own_frame_is_writable_up_to_its_saved_registers(kernel: Confined) -> None:
    """Catches a frame that ends too early, or reaches over a register that the function restores."""
    here = _standing(kernel)
    kernel.world.machine.memory.write_word(here.slot, OUTSIDE)
    end = here.slot - here.saved
    assert _store(kernel, here, STACK_POINTER) == "allow"
    assert _store(kernel, here, end - 8) == "allow"
    assert _store(kernel, here, end - 4) == "deny"
    assert _store(kernel, here, end) == "deny"


def test_the_return_address_is_never_writable(kernel: Confined) -> None:
    """Catches the classic attack, also by a store that only touches it from below."""
    here = _standing(kernel)
    kernel.world.machine.memory.write_word(here.slot, OUTSIDE)
    assert _store(kernel, here, here.slot) == "deny"
    assert _store(kernel, here, here.slot - 4) == "deny"
    assert _store(kernel, here, here.slot + 7, 1) == "deny"


def test_nothing_below_the_stack_pointer_is_writable(kernel: Confined) -> None:
    """Catches a frame without a lower end."""
    here = _standing(kernel)
    kernel.world.machine.memory.write_word(here.slot, OUTSIDE)
    assert _store(kernel, here, STACK_POINTER - 8) == "deny"


def test_frames_of_the_kernel_are_not_own(kernel: Confined) -> None:
    """Catches a walk that goes on past the first return address outside the compartment."""
    here = _standing(kernel)
    kernel.world.machine.memory.write_word(here.slot, OUTSIDE)
    assert _store(kernel, here, here.slot + 64) == "deny"


def test_the_frame_of_an_own_caller_is_writable_between_its_bounds(kernel: Confined) -> None:
    """Catches a local variable of the caller that the callee may not fill, and the caller's return address that it
    may overwrite."""
    here = _standing(kernel)
    function, call = _caller()
    _return_to(kernel, here.slot, function, call)
    caller_sp = here.slot + 8
    assert call.stack_height is not None
    caller_slot = caller_sp + call.stack_height
    kernel.world.machine.memory.write_word(caller_slot, OUTSIDE)
    saved = min(function.frame, call.stack_height)
    assert _store(kernel, here, caller_sp) == "allow"
    assert _store(kernel, here, caller_slot - saved - 8) == "allow"
    assert _store(kernel, here, caller_slot) == "deny"
    if saved:
        assert _store(kernel, here, caller_slot - 8) == "deny"
    assert _store(kernel, here, here.slot) == "deny"


def test_an_address_in_the_middle_of_own_code_is_no_return_address(kernel: Confined) -> None:
    """Catches a walk over a return address that no call of the compartment leaves."""
    here = _standing(kernel)
    function, call = _caller()
    start = kernel.world.sections[function.section] + function.offset
    kernel.world.machine.memory.write_word(here.slot, start + call.offset + call.length + 1)
    assert _store(kernel, here, here.slot + 8) == "deny"


def test_an_unknown_height_allows_nothing(kernel: Confined) -> None:
    """Catches a guess where the description knows no stack height."""
    here = _standing(kernel)
    sites = kernel.world.machine.tables["sites"]
    sites.store(here.site.number, "height", UNKNOWN_HEIGHT)
    kernel.world.machine.memory.write_word(here.slot, OUTSIDE)
    assert _store(kernel, here, STACK_POINTER) == "deny"


def test_frames_by_frame_pointer_hang_on_rbp(kernel: Confined) -> None:
    """Catches functions that align their stack: their return address is at rbp + 8, wherever rsp is."""
    here = _standing(kernel)
    sites = kernel.world.machine.tables["sites"]
    bp = STACK_POINTER + 512
    sites.store(here.site.number, "height", BY_FRAME_POINTER)
    sites.store(here.site.number, "saved", 8)
    kernel.world.machine.memory.write_word(bp + 8, OUTSIDE)
    assert _store(kernel, here, bp - 8, bp=bp) == "allow"
    assert _store(kernel, here, bp, bp=bp) == "deny"
    assert _store(kernel, here, bp + 8, bp=bp) == "deny"


def test_a_caller_by_frame_pointer_is_found_through_the_saved_rbp(kernel: Confined) -> None:
    """Catches a walk that uses the callee's rbp for the caller's frame."""
    here = _standing(kernel, keeps_bp=True)
    bp_offset = next(-offset for register, offset in here.function.saved if register == "rbp")
    aligned = next(
        (
            (function, site)
            for function in sctp().functions
            for site in function.sites
            if site.kind in ("call", "indirect_call") and site.stack_height is None and site.frame_pointer
            if function.stack_kept is None
        ),
        None,
    )
    if aligned is None:  # no function of this build aligns its stack: the table is told so
        function, call = _caller()
        returns = kernel.world.machine.tables["returns"]
        row = next(r for r, row in returns.rows.items() if row[0] == _flat(function, call))
        returns.store(row, "height", BY_FRAME_POINTER)
        returns.store(row, "saved", 8)
        returns.store(row, "bp_slot", 1)
    else:
        function, call = aligned
    saved = 8 if aligned is None else function.frame
    _return_to(kernel, here.slot, function, call)
    caller_bp = here.slot + 1024
    memory = kernel.world.machine.memory
    memory.write_word(here.slot - bp_offset, caller_bp)
    memory.write_word(caller_bp + 8, OUTSIDE)
    assert _store(kernel, here, caller_bp + 8 - saved - 8, bp=0xDEAD) == "allow"
    assert _store(kernel, here, caller_bp + 8, bp=0xDEAD) == "deny"


def test_behind_a_function_that_aligned_its_stack_first_lies_its_callers_frame(kernel: Confined) -> None:
    """Catches a walk that takes the copy of the return address for the place where the caller's frame begins: what
    lies between is padding of 8 bytes, or none."""
    site = next(
        site
        for site in kernel.module.sites
        if site.kind is ir.SiteKind.STORE and sctp().function_by_name[site.function].stack_kept is not None
    )
    function = sctp().function_by_name[site.function]
    here = Standing(function, function.site_by_offset[site.offset], site)
    caller, call = _caller()
    assert function.stack_kept is not None
    assert call.stack_height is not None
    memory = kernel.world.machine.memory
    bp = STACK_POINTER + 512
    copy = bp + 8
    for padding in (0, 8):
        slot = copy + 8 + padding
        _return_to(kernel, copy, caller, call)
        _return_to(kernel, slot, caller, call)
        memory.write_word(copy + function.stack_kept, slot + 8)
        caller_slot = slot + 8 + call.stack_height
        memory.write_word(caller_slot, OUTSIDE)
        assert _store(kernel, here, copy - function.frame - 8, bp=bp) == "allow"
        for saved in (copy, bp, copy + function.stack_kept, copy - function.frame):
            assert _store(kernel, here, saved, bp=bp) == "deny"
        assert _store(kernel, here, slot, bp=bp) == "deny"
        assert _store(kernel, here, slot + 8, bp=bp) == "allow"
        assert _store(kernel, here, caller_slot - caller.frame - 8, bp=bp) == "allow"
        assert _store(kernel, here, caller_slot, bp=bp) == "deny"


def _flat(function: Function, call: Site) -> int:
    from o2cc.lower.places import flat_starts

    return flat_starts(sctp())[function.section] + function.offset + call.offset + call.length + 1


def test_before_the_prologue_no_register_is_saved_yet() -> None:
    """Catches saved registers that are subtracted from a frame which has none so far."""
    function = next(f for f in sctp().functions if f.frame >= 24 and not f.parent)
    assert frame_at(function, None, sctp().function_by_name).saved == 0


def test_a_cold_part_keeps_its_parents_registers() -> None:
    """Catches `.cold` parts whose saved registers count as free stack."""
    names = sctp().function_by_name
    cold, site = next(
        (f, s)
        for f in sctp().functions
        if f.parent and names[f.parent].frame
        for s in f.sites
        if s.stack_height is not None and s.stack_height >= names[f.parent].frame
    )
    assert frame_at(cold, site, names).saved == names[cold.parent or ""].frame
