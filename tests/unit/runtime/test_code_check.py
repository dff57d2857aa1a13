# SPDX-License-Identifier: Apache-2.0
"""Memory is compared with what was scanned, at every probe."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from o2cc.kernel import store
from o2cc.kernel.probed_code import Code, parse
from o2cc.lower.codes import breakpoints_of, codes_of
from o2cc.runtime.code_check import another_code, changed_places, probed_addresses
from o2cc.runtime.kernel_text import KernelText
from o2cc.runtime.plan import Attachment
from tests.unit.runtime.made import site

STORE = bytes.fromhex("48894708")  # mov [rdi+8], rax
LINKED = bytes.fromhex("48c70500000000 00000000".replace(" ", ""))  # mov qword [rip+...], ...
AT = 0xFFFFFFFFC0001000


def digest(code: bytes) -> int:
    import zlib

    return zlib.crc32(code)


class Memory:
    """Some bytes at some addresses, in place of the kernel's."""

    def __init__(self, **parts: bytes) -> None:
        self._parts = {int(at.removeprefix("at_"), 16): content for at, content in parts.items()}

    def read(self, address: int, size: int) -> bytes:
        return self._parts.get(address, b"")[:size]


def changed(memory: bytes, code: Code, probed: frozenset[int] = frozenset()) -> tuple[str, ...]:
    text = cast(KernelText, Memory(**{f"at_{AT:x}": memory}))
    return changed_places([Attachment(site(0, "f", 0x10, code=code.text()), AT)], text, probed)


EXACT = Code(4, digest(STORE), ())


def test_the_same_instruction_is_accepted_and_another_named() -> None:
    """Catches a module of the same version that was built again, without a build id."""
    assert changed(STORE + b"\x90" * 11, EXACT) == ()
    assert changed(bytes.fromhex("48894710") + b"\x90" * 11, EXACT) == ("f+0x10: 48 89 47 10",)
    assert changed(b"", EXACT) == ("f+0x10: unreadable",)


def test_what_the_linker_fills_in_is_not_compared() -> None:
    code = Code(len(LINKED), digest(LINKED), ((3, 4), (7, 4)))
    linked = LINKED[:3] + b"\x11\x22\x33\x44\x55\x66\x77\x08"
    assert changed(linked, code) == ()
    assert changed(linked, Code(len(LINKED), digest(LINKED), None)) == (), (
        "nobody knows which bytes those are"
    )
    assert changed(b"\x48\xc7\x04" + linked[3:], code) != ()


@pytest.mark.parametrize(
    ("memory", "probed"),
    [
        (b"\xcc" + STORE[1:], frozenset()),
        (b"\xe9\x01\x02\x03\x04", frozenset()),
        (b"\x01\x02\x03\x04", frozenset({AT - 4})),
        (STORE[:3] + b"\xcc", frozenset({AT + 3})),
    ],
)
def test_probes_of_others_are_no_change(memory: bytes, probed: frozenset[int]) -> None:
    """Catches a second compartment on the same module that is refused because of the first."""
    assert changed(memory + b"\x90" * 11, EXACT, probed) == ()
    assert probed == frozenset() or changed(memory + b"\x90" * 11, EXACT) != ()


def test_sites_without_code_and_missing_lists_are_passed_over(tmp_path: Path) -> None:
    text = cast(KernelText, Memory())
    assert changed_places([Attachment(site(0, "f", 0x10), AT)], text, frozenset()) == ()
    assert probed_addresses(tmp_path / "none") == frozenset()
    (tmp_path / "list").write_text("ffffffffc0001000  k  f+0x10  [sctp][OPTIMIZED]\n")
    assert probed_addresses(tmp_path / "list") == {AT}


def test_a_long_list_is_cut() -> None:
    diagnostic = another_code("sctp", [f"f+{at:#x}: 90" for at in range(9)], 20)
    assert diagnostic.code == "O2C0812"
    assert diagnostic.notes[-1] == "and 4 more"


def test_probes_that_must_stay_breakpoints_are_known_by_their_place() -> None:
    (path,) = store.bundled("sctp", "6.1.0-57-amd64")
    assert breakpoints_of(store.load(path)) == {("sctp_v4_copy_ip_options", 110)}


def test_every_probe_of_a_description_has_its_code() -> None:
    (path,) = store.bundled("sctp", "6.1.0-57-amd64")
    description = store.load(path)
    codes = codes_of(description)
    assert len(codes) > 5000
    assert {parse(text).text() for text in codes.values()} == set(codes.values())
    probes = {
        (function.name, s.probe.offset)
        for function in description.functions
        for s in function.sites
        if s.probe.offset is not None and not s.probe.bytes_change
    }
    assert probes <= set(codes)
