# SPDX-License-Identifier: Apache-2.0
"""Hooks at tracepoints in the hands of o2c.ko: what they see, when they run, and what the interface refuses."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from o2cc.bpf.info import read as read_info
from o2cc.diagnostics import Diagnostic
from o2cc.runtime import enforcement, kernel_calls, module_load, state
from o2cc.runtime import enforcer_abi as abi
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import EnforcerError, Feature, Reason
from o2cc.runtime.loader import LoadOptions
from o2cc.runtime.status import gather, lines
from o2cc.runtime.tracepoints import FUNCTION
from tests.vm.guest.enforcer_support import (
    RAW_TRACEPOINT,
    Forms,
    Verdicts,
    array_map,
    constant_program,
    load_module,
    map_id,
    unload_module,
)
from tests.vm.guest.heap_support import Operation, allocate
from tests.vm.guest.hook_support import ROWS, Counter, SlowHook, frame_row, object_row
from tests.vm.guest.slow_check import on_cpu
from tests.vm.guest.victim_support import ATTACKS, NAME, PROPER, Victim, loaded
from tests.vm.policies import guest_object

SIZE = 64
ATTEMPTS = 5
POINTER = ORDER = 1  # arguments of kfree, and of mm_page_alloc and mm_page_free
KPROBE = 2  # enum bpf_prog_type
RSI = 13  # the word of struct pt_regs
BULK = 20
HIGHER = 4  # an order that the counts of pages do not speak for


def commit(enforcer: Enforcer, forms: Forms, verdicts: Verdicts) -> None:
    """In force, with one site that allows."""
    enforcer.attach([forms.all["mov_64"].site(enforcer.program(verdicts.program))])
    enforcer.commit()


@contextmanager
def counting(argument: int = POINTER, kind: int = RAW_TRACEPOINT) -> Iterator[Counter]:
    counter = Counter(argument, kind)
    try:
        yield counter
    finally:
        counter.close()


def new(forms: Forms) -> int:
    """An object of the kernel's."""
    return int(allocate(forms, Operation.KERNEL, SIZE).result)


def kfree(forms: Forms, pointer: int) -> None:
    allocate(forms, Operation.KFREE, pointer=pointer)


def freed_inside(forms: Forms, hook: SlowHook, slow: int, wanted: int) -> bool:
    """Free one object on the first processor, and from the second, while the hook is at it, another one by an interrupt on the
    first; whether the hook was still held up when the interrupt was through."""
    child = os.fork()
    if child == 0:
        try:
            with on_cpu(0):
                kfree(forms, slow)
        finally:
            os._exit(0)
    with on_cpu(1):
        hook.wait()
        allocate(forms, Operation.KFREE_THERE, 0, wanted)
        held = hook.held
    hook.go_on()
    os.waitpid(child, 0)
    return held


def test_a_free_by_an_interrupt_inside_the_hook_is_seen(forms: Forms, verdicts: Verdicts) -> None:
    """Catches the kernel's guard against programs inside themselves, which a link has: the object would stay the compartment's."""
    for _ in range(ATTEMPTS):
        slow, wanted = new(forms), new(forms)
        hook = SlowHook(slow, wanted)
        link = kernel_calls.open_raw_tracepoint(hook.program, "kfree")
        held = freed_inside(forms, hook, slow, wanted)
        seen_by_link = hook.seen
        os.close(link)
        hook.close()
        if held:
            assert seen_by_link == 0, "the kernel has another rule: this test shows nothing any more"
            break
    else:
        pytest.fail("the hook was never held up")

    slow, wanted = new(forms), new(forms)
    hook = SlowHook(slow, wanted)
    with Enforcer() as enforcer:
        enforcer.create("hooks")
        enforcer.tracepoint("kfree", enforcer.program(hook.program))
        commit(enforcer, forms, verdicts)
        held = freed_inside(forms, hook, slow, wanted)
        assert hook.seen == 1
    assert not held, "the interrupt came inside the hook"
    hook.close()


def test_hooks_run_from_the_first_moment_to_the_end(forms: Forms, verdicts: Verdicts) -> None:
    with counting() as counter:
        with Enforcer() as enforcer:
            enforcer.create("hooks")
            enforcer.tracepoint("kfree", enforcer.program(counter.program))
            pointer = new(forms)
            counter.begin(pointer)
            kfree(forms, pointer)
            assert counter.seen == 1, "what the loader notes can be freed while sites are being attached"
            commit(enforcer, forms, verdicts)
            assert enforcer.info().tracepoints == 1
            pointer = new(forms)
            counter.begin(pointer)
            kfree(forms, pointer)
            assert counter.seen == 1
            enforcer.detach()
            counter.begin()
            kfree(forms, new(forms))
            assert counter.runs == 0
        with Enforcer() as enforcer:  # closed without a commit
            enforcer.create("hooks")
            enforcer.tracepoint("kfree", enforcer.program(counter.program))
            enforcer.tracepoint("kmem_cache_free", 0)
        counter.begin()
        kfree(forms, new(forms))
        assert counter.runs == 0
    forms.close()
    unload_module("o2c")  # nobody calls into it any more
    load_module("o2c")
    forms.open()


def test_words_tell_when_a_hook_runs(forms: Forms, verdicts: Verdicts) -> None:
    """Catches a row that o2c.ko finds otherwise than the checks do, by which frees would pass unseen."""
    with (
        counting() as objects,
        counting(ORDER) as pages,
        counting(ORDER) as new_pages,
        Enforcer() as enforcer,
    ):
        enforcer.create("hooks")
        indices = [enforcer.program(counter.program) for counter in (objects, pages, new_pages)]
        enforcer.tracepoint("kfree", indices[0], map=objects.id)
        enforcer.tracepoint("mm_page_free", indices[1], map=pages.id)
        enforcer.tracepoint("mm_page_alloc", indices[2], map=new_pages.id, offset=4, value=2)
        commit(enforcer, forms, verdicts)

        objects.begin()
        kfree(forms, new(forms))
        assert objects.runs == 0
        for _ in range(100):
            pointer = new(forms)
            objects.begin(pointer, {object_row(pointer): 1})
            kfree(forms, pointer)
            assert objects.seen == 1
        pointer = new(forms)
        objects.begin(pointer, {row: 1 for row in range(ROWS) if row != object_row(pointer)})
        kfree(forms, pointer)
        assert objects.seen == 0

        for order in range(HIGHER + 1):
            for known in (False, True):
                made = allocate(forms, Operation.PAGES_ADDRESS, order)
                last = frame_row(made.frame + (1 << order) - 1)
                pages.begin(order, {last: 1} if known else {})
                allocate(forms, Operation.FREE_PAGES, order, made.result)
                assert (pages.seen > 0) is (known or order == HIGHER), order

        for value, runs in ((2, True), (1, False), (3, False)):
            new_pages.begin(words={1: value})
            made = allocate(forms, Operation.PAGES_ADDRESS, HIGHER)
            assert (new_pages.runs > 0) is runs
            allocate(forms, Operation.FREE_PAGES, HIGHER, made.result)


def test_frees_in_bulk_are_seen_where_one_object_is_known(forms: Forms, verdicts: Verdicts) -> None:
    """They pass no tracepoint; catches one that looks at the first object only, and a probe that nothing runs any more."""
    switch = Path("/proc/sys/kernel/ftrace_enabled")
    with counting(RSI, KPROBE) as counter, counting() as other, Enforcer() as enforcer:
        enforcer.create("hooks")
        hook, raw_hook = enforcer.program(counter.program), enforcer.program(other.program)
        assert refused(enforcer, FUNCTION, raw_hook) == errno.EINVAL
        assert refused(enforcer, FUNCTION, hook, map=counter.id, value=1) == errno.EINVAL
        switch.write_text("0")
        try:
            assert refused(enforcer, FUNCTION, hook, map=counter.id) == errno.EBUSY
        finally:
            switch.write_text("1")
        enforcer.tracepoint(FUNCTION, hook, map=counter.id)
        assert refused(enforcer, FUNCTION, hook) == errno.EEXIST
        with pytest.raises(OSError, match="busy"):
            switch.write_text("0")
        commit(enforcer, forms, verdicts)
        for known in (True, False):
            made = allocate(forms, Operation.BULK_ALLOC, BULK)
            last = object_row(made.result)
            counter.begin(BULK, {last: 1} if known else {})
            allocate(forms, Operation.BULK_FREE, made.size)
            assert (counter.seen, counter.runs > 0) == (int(known), known)
        enforcer.detach()
        made = allocate(forms, Operation.BULK_ALLOC, BULK)
        counter.begin(BULK, {object_row(made.result): 1})
        allocate(forms, Operation.BULK_FREE, made.size)
        assert counter.runs == 0


def refused(enforcer: Enforcer, name: str, program: int, **words: int) -> int:
    with pytest.raises(EnforcerError) as caught:
        enforcer.tracepoint(name, program, **words)
    return caught.value.errno


def raw(enforcer: Enforcer, name: bytes, **members: Any) -> int:
    """The request as given; its error number."""
    request = abi.TracepointData(**members)
    ctypes.memmove(ctypes.addressof(request), name, len(name))
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.ioctl(
        ctypes.c_int(enforcer.fileno()), ctypes.c_ulong(abi.IOC_TRACEPOINT), ctypes.byref(request)
    )
    return ctypes.get_errno() if result < 0 else 0


def test_what_the_interface_refuses(forms: Forms, verdicts: Verdicts) -> None:
    with counting() as counter, counting(2) as greedy, Enforcer() as enforcer:
        assert refused(enforcer, "kfree", 0) == errno.ENODEV
        enforcer.create("hooks")
        assert refused(enforcer, "kfree", 0) == errno.ENOENT
        hook, site = enforcer.program(counter.program), enforcer.program(verdicts.program)
        for name in ("", "kfre", "kfree_skb", "sys_enter", "mm_page_free_batched", "x" * 31):
            assert refused(enforcer, name, hook) == errno.ENOENT, name
        assert raw(enforcer, b"kfree" + b"x" * 27, program=hook) == errno.ENOENT
        assert raw(enforcer, b"kfree\0" + b"x" * 26, program=hook) == errno.EINVAL
        assert raw(enforcer, b"kfree", program=hook, reserved=1) == errno.EINVAL
        for index in (2, 0x7FFFFFFF, 0xFFFFFFFF):
            assert refused(enforcer, "kfree", index) == errno.ENOENT
        assert refused(enforcer, "kfree", site) == errno.EINVAL  # of the other type, and the reverse:
        with pytest.raises(EnforcerError) as caught:
            enforcer.attach([forms.all["mov_64"].site(hook)])
        assert (caught.value.errno, caught.value.reason) == (errno.ENOENT, Reason.PROGRAM)
        third = enforcer.program(greedy.program)
        assert refused(enforcer, "kfree", third) == errno.EINVAL  # it has two arguments

        foreign = array_map(4 * ROWS)
        words = {
            "nobody's": ({"map": 0x7FFFFFFF}, errno.ENOENT),
            "of no program": ({"map": map_id(foreign)}, errno.ENOENT),
            "table behind the end": ({"map": counter.id, "offset": 28}, errno.EINVAL),
            "far behind the end": ({"map": counter.id, "offset": 0xFFFFFFFC}, errno.EINVAL),
            "between words": ({"map": counter.id, "offset": 2}, errno.EINVAL),
            "a value with a table": ({"map": counter.id, "value": 1}, errno.EINVAL),
            "an offset into nothing": ({"offset": 4}, errno.EINVAL),
            "a value of nothing": ({"value": 1}, errno.EINVAL),
        }
        for what, (asked, number) in words.items():
            assert refused(enforcer, "kfree", hook, **asked) == number, what
        os.close(foreign)
        assert refused(enforcer, "percpu_free_percpu", hook, map=counter.id) == errno.EINVAL
        assert refused(enforcer, "mm_page_alloc", hook, map=counter.id, offset=4 * ROWS + 24) == errno.EINVAL
        with pytest.raises(EnforcerError) as several:  # an array of more than one value
            enforcer.tracepoint("kfree", hook, map=map_id(verdicts.map))
        assert several.value.errno == errno.EINVAL

        child = os.fork()
        if child == 0:
            os.setgid(65534)
            os.setuid(65534)
            os._exit(0 if raw(enforcer, b"kfree", program=hook) == errno.EPERM else 1)
        assert os.waitpid(child, 0)[1] == 0

        assert enforcer.info().tracepoints == 0
        enforcer.tracepoint("kfree", hook, map=counter.id, offset=20)
        assert refused(enforcer, "kfree", hook) == errno.EEXIST
        enforcer.tracepoint("kmem_cache_free", hook)
        with Enforcer() as other:
            other.create("beside")
            other.tracepoint("kfree", other.program(counter.program))
            commit(enforcer, forms, verdicts)
            assert refused(enforcer, "mm_page_free", hook) == errno.EBUSY
            assert (enforcer.info().tracepoints, other.info().tracepoints) == (2, 1)


def test_programs_of_another_kind_are_refused(forms: Forms) -> None:
    writable, tracepoint = 24, 5  # enum bpf_prog_type
    program = constant_program(0, tracepoint)
    with Enforcer() as enforcer:
        enforcer.create("hooks")
        with pytest.raises(EnforcerError) as caught:
            enforcer.program(program)
        assert caught.value.errno == errno.EINVAL
        os.close(program)
        program = constant_program(0, writable)
        with pytest.raises(EnforcerError):
            enforcer.program(program)
        os.close(program)
        program = constant_program(0, RAW_TRACEPOINT)
        assert enforcer.program(program) == 0
        os.close(program)


def test_a_policy_that_denies_has_its_hooks_there(victim: Victim) -> None:
    """No link of the kernel's is left for them, through which frees could go unseen."""
    load_module("o2c")
    with loaded(guest_object("deny")):
        assert not list((state.pins(NAME) / "links").glob("*"))
        with Enforcer() as enforcer:
            enforcer.open(NAME)
            assert enforcer.info().tracepoints >= 5
        assert gather(NAME).unseen == 0


class Older(Enforcer):
    """O2c.ko as it was before it had hooks at tracepoints."""

    def __init__(self) -> None:
        super().__init__()
        self.features &= ~Feature.TRACEPOINT

    def tracepoint(self, name: str, program: int, *, map: int = 0, offset: int = 0, value: int = 0) -> None:
        raise EnforcerError("tracepoint", errno.ENOTTY)


def test_an_older_module_gets_links_and_is_told_of(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a machine that boots after an upgrade with the old module: no protection there, or less than it seems, without a word."""
    load_module("o2c")
    monkeypatch.setattr(module_load, "Enforcer", Older)
    path, warnings = guest_object("deny"), list[Diagnostic]()
    hooks = {
        hook.name for hook in read_info(path.read_bytes(), str(path)).hooks if hook.kind == "raw_tracepoint"
    }
    assert hooks
    freed = next(attack for attack in ATTACKS if attack.name == "use-after-free")
    with loaded(path, LoadOptions(warn=warnings.append)):
        assert hooks <= {link.name for link in (state.pins(NAME) / "links").iterdir()}
        with Enforcer() as enforcer:
            enforcer.open(NAME)
            assert enforcer.info().tracepoints == 0
        assert [item.code for item in warnings if item.code == "O2C0846"] == ["O2C0846"]
        now = gather(NAME)
        assert now.enforced
        assert now.problems == (enforcement.OLDER_MODULE,)
        assert any("older than `o2c`" in line for line in lines(now))
        assert victim.run(PROPER) == 0
        assert sum(counter.denied for counter in gather(NAME).counters) == 0
        victim.run(freed.number)
        assert sum(counter.denied for counter in gather(NAME).counters) > 0
        assert victim.run(PROPER) == 0
    assert not state.pins(NAME).exists()
