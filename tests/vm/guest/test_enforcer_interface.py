# SPDX-License-Identifier: Apache-2.0
"""The interface of o2c.ko: what it refuses, and that hostile requests do no harm."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import NO_REGISTER, Action, EnforcerError, Kind, Mode, Reason, Site
from tests.vm.guest.enforcer_support import (
    RAW_TRACEPOINT,
    Forms,
    Verdicts,
    constant_program,
    detach_what_is_left,
    pin,
    socket_filter,
    start_state,
    text_of,
)
from tests.vm.guest.heap_support import Operation, allocate, heap_sites
from tests.vm.guest.waiting import wait_until


@pytest.fixture
def enforcer(forms: Forms) -> Iterator[Enforcer]:
    with Enforcer() as opened:
        yield opened


def refused(enforcer: Enforcer, site: Site) -> tuple[int, Reason]:
    with pytest.raises(EnforcerError) as caught:
        enforcer.attach([site])
    assert caught.value.site == 0
    return caught.value.errno, caught.value.reason


def test_sites_that_do_not_fit_are_refused(enforcer: Enforcer, forms: Forms, verdicts: Verdicts) -> None:
    enforcer.create("refusals")
    program = enforcer.program(verdicts.program)
    store, lock = forms.all["mov_64"], forms.all["add_lock"]
    jump = forms.all["jump_register"]
    cases = {
        "bytes": (store.site(program, code=b"\x90" * 7), errno.EILSEQ, Reason.BYTES),
        "length": (store.site(program, code=store.site(program).code[:-1]), errno.EOPNOTSUPP, Reason.FORM),
        "base": (store.site(program, base=6), errno.EINVAL, Reason.OPERAND),
        "displacement": (store.site(program, displacement=0x108), errno.EINVAL, Reason.OPERAND),
        "size": (store.site(program, size=4), errno.EINVAL, Reason.OPERAND),
        "kind": (store.site(program, kind=Kind.RMW), errno.EINVAL, Reason.KIND),
        "other kind": (lock.site(program, kind=Kind.STORE), errno.EINVAL, Reason.KIND),
        "program": (store.site(program + 1), errno.ENOENT, Reason.PROGRAM),
        "tail": (jump.site(program, tail=False), errno.EOPNOTSUPP, Reason.TAIL),
        "user address": (store.site(program, address=0x400000), errno.EFAULT, Reason.ADDRESS),
        "hole": (store.site(program, address=0xFFFFFFFFFFFFF000 - 8), errno.EFAULT, Reason.ADDRESS),
        "no text": (store.site(program, address=0xFFFF888000000000), None, None),
        "observed with length": (store.site(program, kind=Kind.OBSERVE), errno.EINVAL, Reason.RESERVED),
        "entry with displacement": (
            Site(store.function, 1, program, Kind.ENTRY, Action.REPORT, displacement=5),
            errno.EINVAL,
            Reason.RESERVED,
        ),
        "return with another displacement than to behind ftrace's place": (
            Site(store.function, 1, program, Kind.RETURN, Action.REPORT, displacement=4),
            errno.EILSEQ,
            Reason.BYTES,
        ),
        "middle": (
            Site(store.address + 1, 1, program, Kind.OBSERVE, Action.REPORT),
            errno.EILSEQ,
            Reason.PROBE,
        ),
    }
    for what, (site, number, reason) in cases.items():
        seen = refused(enforcer, site)
        if number is not None:
            assert seen == (number, reason), what
    for name in ("push", "load", "compare", "register", "address_32", "shld"):
        form = forms.all[f"refused_{name}"]
        code = form.code[: form.instruction.len]
        site = Site(form.address, 1, program, Kind.STORE, Action.DENY, code, base=7, size=8)
        number, reason = refused(enforcer, site)
        assert reason in (Reason.FORM, Reason.KIND), name
    # a masked byte is not compared
    wrong = bytearray(store.site(program).code)
    wrong[-1] ^= 0xFF
    mask = b"\xff" * (len(wrong) - 1) + b"\0"
    assert enforcer.attach([store.site(program, code=bytes(wrong), mask=mask)])[0].errno == 0


def test_batch_is_all_or_nothing(enforcer: Enforcer, forms: Forms, verdicts: Verdicts) -> None:
    enforcer.create("batch")
    program = enforcer.program(verdicts.program)
    sites = [form.site(program) for form in forms.runnable()]
    bad = [*sites[:10], forms.all["mov_64"].site(program, size=4), *sites[10:]]
    with pytest.raises(EnforcerError) as caught:
        enforcer.attach(bad)
    assert (caught.value.site, caught.value.reason) == (10, Reason.OPERAND)
    assert enforcer.info().sites == 0
    for form in forms.runnable()[:10]:
        assert text_of(form) == form.code
    results = enforcer.try_attach(bad)
    assert [result.errno for result in results].count(0) == len(sites)
    assert results[10].index is None
    assert results[10].reason is Reason.OPERAND
    assert enforcer.info().sites == len(sites)


def test_the_order_of_calls_is_checked(forms: Forms, verdicts: Verdicts) -> None:
    form = forms.all["mov_64"]

    def number_of(call: object, *arguments: object) -> int:
        assert callable(call)
        with pytest.raises(EnforcerError) as caught:
            call(*arguments)
        return caught.value.errno

    with Enforcer() as enforcer:
        for call in (enforcer.commit, enforcer.stats, enforcer.info, enforcer.detach):
            assert number_of(call) == errno.ENODEV
        assert number_of(enforcer.open, "nobody") == errno.ENOENT
        for name in ("", "a b", "a/b", "ü"):
            assert number_of(enforcer.create, name) == errno.EINVAL, name
        with pytest.raises(EnforcerError) as caught:
            enforcer.create("x", module="no_such_module")
        assert caught.value.errno == errno.ENOENT
        enforcer.create("order", module="o2c_forms")
        assert number_of(enforcer.create, "second") == errno.EBUSY
        assert number_of(enforcer.commit) == errno.ENODATA
        with Enforcer() as other:
            assert number_of(other.create, "order") == errno.EEXIST
        program = enforcer.program(verdicts.program)
        enforcer.attach([form.site(program)])
        enforcer.commit()
        assert number_of(enforcer.commit) == errno.EBUSY
        assert number_of(enforcer.program, verdicts.program) == errno.EBUSY
        assert number_of(enforcer.attach, [form.site(program)]) == errno.EBUSY
        enforcer.detach()
        assert number_of(enforcer.stats) == errno.ENODEV


def test_programs_are_checked(enforcer: Enforcer, forms: Forms, tmp_path: Path) -> None:
    enforcer.create("programs")
    filter_program = socket_filter()
    descriptor = os.open("/dev/null", os.O_RDONLY)
    for bad in (filter_program, descriptor, 1_000_000):
        with pytest.raises(EnforcerError):
            enforcer.program(bad)
    for path in (Path("/sys/fs/bpf/nothing"), Path("/etc/passwd"), Path("/sys/fs/bpf")):
        with pytest.raises(EnforcerError):
            enforcer.program(path)
    deny = constant_program(1)
    place = Path("/sys/fs/bpf/o2c_test_deny")
    pin(deny, place)
    try:
        index = enforcer.program(place)
    finally:
        place.unlink()
    os.close(deny)
    form = forms.all["mov_64"]
    enforcer.attach([form.site(index)])
    enforcer.commit()
    before, pointers = start_state(form)
    assert forms.run(form, before, pointers).memory == before.memory
    os.close(filter_program)
    os.close(descriptor)


def test_kinds_follow_the_instruction(enforcer: Enforcer, forms: Forms, verdicts: Verdicts) -> None:
    """Poison only for plain stores through a base other than rsp and rbp, without an index."""
    enforcer.create("kinds")
    program = enforcer.program(verdicts.program)
    skip: tuple[str, ...] = (
        "mov_index",
        "mov_index_only",
        "mov_rbp",
        "mov_rsp",
        "mov_rip",
        "mov_gs",
        "add_32",
        "rep_movsb",
    )
    skip = (*skip, "movups")  # kprobes does not move it, so it can be no jump
    poison = (
        "mov_8",
        "mov_64",
        "mov_r8",
        "mov_r12",
        "mov_r13",
        "mov_high",
        "mov_immediate_64",
        "setcc",
    )
    names = [*skip, *poison]
    results = enforcer.attach([forms.all[name].site(program) for name in names])
    for name, result in zip(names, results, strict=True):
        assert result.mode is (Mode.SKIP if name in skip else Mode.POISON), name
    strict = enforcer.attach([forms.all["mov_16"].site(program, strict=True)])
    assert strict[0].mode is Mode.SKIP


def test_only_root(forms: Forms) -> None:
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            os.open("/dev/o2c", os.O_RDWR)
        except PermissionError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    # an open file handed to an ordinary process is of no use to it either
    with Enforcer() as enforcer:
        enforcer.create("handed-over")
        child = os.fork()
        if child == 0:
            os.setgid(65534)
            os.setuid(65534)
            try:
                enforcer.info()
            except EnforcerError as error:
                os._exit(0 if error.errno == errno.EPERM else 2)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("seed", range(4))
def test_hostile_requests_do_no_harm(forms: Forms, verdicts: Verdicts, seed: int) -> None:
    """Random numbers, sizes, pointers and members: errors, no splat, and the device works afterwards."""
    chance = random.Random(seed)
    pages = mmap.mmap(-1, 1 << 20)  # large: what the kernel writes at a wild pointer into it stays in it
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    form = forms.all["mov_64"]
    with Enforcer() as helper:
        helper.create("fuzz-helper")
        good = form.site(helper.program(verdicts.program))
    libc = ctypes.CDLL(None, use_errno=True)
    sizes = {0: 16, 1: 112, 2: 32, 3: 24, 4: 40, 6: 24, 7: 128, 12: 56}
    hook = constant_program(0, RAW_TRACEPOINT)
    descriptors = [os.open("/dev/o2c", os.O_RDWR | os.O_CLOEXEC) for _ in range(3)]
    interesting = [0, 1, 2, 7, 80, 255, 4096, 4097, 65536, 0xFFFFFFFF, verdicts.program, form.address]
    interesting += [0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 0xFFFF888000000000, 0xDEAD000000000000]
    interesting += [start, start + 80, start + 65530]
    for _ in range(3000):
        descriptor = chance.choice(descriptors)
        number = chance.choice([0, 1, 1, 2, 3, 3, 4, 4, 4, 5, 6, 7, 8, 12, 12, chance.randrange(256)])
        direction = (
            chance.randrange(4) if chance.random() < 0.1 else {0: 2, 7: 2, 1: 1, 2: 1, 12: 1}.get(number, 3)
        )
        if number in (5, 8):
            direction = 0
        size = sizes.get(number, 0) if chance.random() < 0.95 else chance.randrange(16384)
        request = direction << 30 | size << 16 | 0xC2 << 8 | number
        words = [chance.choice(interesting) for _ in range(64)]
        data = bytearray(struct.pack("<64Q", *words))
        if number in (1, 2) and chance.random() < 0.8:
            at = 8 if number == 1 else 0
            data[:at] = struct.pack("<II", chance.randrange(4), chance.randrange(3))[:at]
            data[at : at + 32] = chance.choice([b"fuzz-a", b"fuzz-b", b"fuzz c", bytes(range(1, 33))]).ljust(
                32, b"\0"
            )
            data[at + 32 : at + 104] = chance.choice([b"", b"o2c_forms", b"o2c", b"sctp"]).ljust(72, b"\0")
        elif number == 3 and chance.random() < 0.7:
            struct.pack_into("<iIQQ", data, 0, chance.choice([verdicts.program, hook]), 0, 0, 0)
        elif number == 4 and chance.random() < 0.8:
            site = bytearray(80)
            struct.pack_into("<QQqI", site, 0, good.address, 1, -14, 0)
            site[28:36] = bytes([1, 1, 0, len(good.code), good.base, 0xFF, 0, 8])
            struct.pack_into("<i", site, 36, good.displacement)
            site[40 : 40 + len(good.code)] = good.code
            site[56 : 56 + len(good.code)] = b"\xff" * len(good.code)
            for _ in range(chance.choice([0, 1, 3])):
                site[chance.randrange(80)] = chance.randrange(256)
            # never arm what the kernel itself needs: addresses stay in the test module or are nonsense
            if chance.random() < 0.2:
                struct.pack_into("<Q", site, 0, chance.choice(interesting))
            pages[:80] = bytes(site)
            count = chance.choice([1, 1, 1, 2, 4096])
            struct.pack_into("<QQIIIIII", data, 0, start, 0, count, 80, 0, 0, 0, 0)
        elif number == 12 and chance.random() < 0.9:
            name = chance.choice([b"kfree", b"mm_page_free", b"kmem_cache_free", b"sys_enter", b"k" * 32])
            members = [chance.choice([0, 0, 0, 1, 2, chance.randrange(2**32)]) for _ in range(4)]
            struct.pack_into("<32sIIIIQ", data, 0, name, *members, chance.choice([0, 0, 0, 1]))
        elif number == 6 and chance.random() < 0.7:
            struct.pack_into("<QIIII", data, 0, start + 4096, 0, 100, 0, 0)
        if chance.random() < 0.05:
            target = ctypes.c_void_p(chance.choice(interesting))
        else:
            argument = ctypes.create_string_buffer(bytes(data), len(data))
            target = ctypes.cast(argument, ctypes.c_void_p)
        libc.ioctl(descriptor, ctypes.c_ulong(request), target)
        if chance.random() < 0.01:
            at = chance.randrange(len(descriptors))
            os.close(descriptors[at])
            descriptors[at] = os.open("/dev/o2c", os.O_RDWR | os.O_CLOEXEC)
    for descriptor in (*descriptors, hook):
        os.close(descriptor)
    with Enforcer() as enforcer:
        detach_what_is_left("fuzz-a", "fuzz-b")
        assert wait_until(lambda: text_of(form) == form.code)
        verdicts.set(form.number, 1)
        enforcer.create("after-fuzz")
        enforcer.attach([form.site(enforcer.program(verdicts.program))])
        enforcer.commit()
        before, pointers = start_state(form)
        assert forms.run(form, before, pointers).memory == before.memory


def test_device_takes_no_other_ioctl(forms: Forms) -> None:
    with Enforcer() as enforcer:
        enforcer.create("other")
        for request in (0x5401, 0xC200, 0xC2FF):
            with pytest.raises(OSError, match="Inappropriate ioctl"):
                fcntl.ioctl(enforcer.fileno(), request)


# some modules of the distribution without hardware, for their last functions
MODULES = (
    "sch_fq",
    "sch_cake",
    "cls_u32",
    "cls_route",
    "cls_flow",
    "act_police",
    "ip_gre",
    "dummy",
    "vxlan",
    "tun",
)


def _last_functions() -> dict[str, int]:
    """The highest text symbol of each loaded module."""
    last: dict[str, int] = {}
    for line in Path("/proc/kallsyms").read_text().splitlines():
        fields = line.split()
        if len(fields) != 4 or fields[1] not in "tT" or fields[2].startswith("__pfx_"):
            continue
        module = fields[3].strip("[]")
        last[module] = max(last.get(module, 0), int(fields[0], 16))
    return last


def test_last_functions_do_not_crash_the_optimizer(forms: Forms, verdicts: Verdicts) -> None:
    """From 6.4 on kprobes reads past a module's text there, unless the padding has an even length."""
    for module in MODULES:
        subprocess.run(["modprobe", module], check=False)
    refusals = []
    attached = 0
    with Enforcer() as enforcer:
        enforcer.create("last")
        program = enforcer.program(verdicts.program)
        for module, address in sorted(_last_functions().items()):
            if module in ("o2c", "bpf"):
                continue
            (result,) = enforcer.try_attach([Site(address, 1, program, Kind.OBSERVE, Action.REPORT)])
            if result.errno:
                refusals.append((module, result.reason))
            else:
                attached += 1
    assert attached >= 2, refusals
    # ftrace may refuse nothing here; kprobes refuses what is not instrumentable
    reasons = {reason for _, reason in refusals}
    if os.uname().release.startswith("6.1."):
        assert Reason.LAST_FUNCTION not in reasons
    else:
        assert Reason.LAST_FUNCTION in reasons, (attached, refusals)


def test_joins_the_probe_of_another_tool(forms: Forms, verdicts: Verdicts) -> None:
    """The kernel keeps all probes of an address in one list; which of its members is whose cannot be seen from inside."""
    call = next(site for site in heap_sites(forms) if site.cookie == Operation.KVMALLOC)
    tracing = Path("/sys/kernel/tracing")
    (tracing / "kprobe_events").write_text(f"p:o2c_test/other {call.address:#x}\n")
    enable = tracing / "events/o2c_test/other/enable"
    enable.write_text("1")
    try:
        with Enforcer() as enforcer:
            enforcer.create("joins")
            program = enforcer.program(verdicts.program)
            enforcer.attach([Site(call.address, 7, program, Kind.OBSERVE, Action.REPORT)])
            # what it would deny cannot be compared with what the compiler saw
            gate = replace(call, kind=Kind.CALL, program=program, base=NO_REGISTER, index=NO_REGISTER, size=0)
            (refused,) = enforcer.try_attach([gate])
            assert refused.reason is Reason.BYTES
            enforcer.commit()
            for _ in range(100):
                made = allocate(forms, Operation.KVMALLOC, 100)
                assert made.result
                allocate(forms, Operation.KVFREE, pointer=made.result)
            assert enforcer.stats()[0].hits == 100
    finally:
        enable.write_text("0")
        (tracing / "kprobe_events").write_text("")
