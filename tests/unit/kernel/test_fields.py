# SPDX-License-Identifier: Apache-2.0
"""From offsets in structs to fields, and what `o2c show` says of them."""

from __future__ import annotations

import json

import pytest

from o2cc.cli.common import run
from o2cc.cli.o2c import o2c
from o2cc.kernel import store
from o2cc.kernel.fields import fields_at, members_of
from o2cc.kernel.pointees import Pointees
from o2cc.kernel.type_table import Member, Struct, TypeReference, TypeTable

WORD = TypeReference("int", "unsigned long", 8)
BYTE = TypeReference("int", "unsigned char", 1)
INNER = TypeReference("struct", "inner", 16)
TYPES = TypeTable(
    (
        Struct(
            "outer",
            "struct",
            72,
            (
                Member("count", 0, WORD),
                Member("", 64, TypeReference("union", "anonymous", 8)),
                Member("low", 128, BYTE, 3),
                Member("high", 131, BYTE, 13),
                Member("items", 192, TypeReference("array", size=32, element=INNER, count=2)),
                Member("last", 512, TypeReference("struct", "unknown", 8)),
            ),
        ),
        Struct(
            "anonymous",
            "union",
            8,
            (Member("number", 0, WORD), Member("inner", 0, TypeReference("struct", "half", 4))),
        ),
        Struct("half", "struct", 4, (Member("a", 0, BYTE), Member("b", 16, BYTE))),
        Struct("inner", "struct", 16, (Member("first", 0, WORD), Member("second", 64, WORD))),
    )
)
SCTP = "6.1.0-57-amd64"


@pytest.mark.parametrize(
    ("offset", "paths"),
    [
        (0, ["count"]),
        (7, ["count"]),
        (8, ["number", "inner.a"]),
        (9, ["number"]),
        (10, ["number", "inner.b"]),
        (16, ["low", "high"]),
        (17, ["high"]),
        (18, []),
        (24, ["items[0].first"]),
        (50, ["items[1].second"]),
        (64, ["last"]),
        (72, []),
    ],
)
def test_every_byte_has_its_fields(offset: int, paths: list[str]) -> None:
    """Catches members of unions, bit fields, arrays and padding that are told wrongly."""
    found = fields_at(TYPES, "outer", offset)
    assert [field.path for field in found] == paths
    assert all(field.offset <= offset < field.offset + field.size for field in found)


def test_members_are_listed_with_those_of_anonymous_ones() -> None:
    assert [(field.path, field.offset) for field in members_of(TYPES, "outer")] == [
        ("count", 0),
        ("number", 8),
        ("inner", 8),
        ("low", 16),
        ("high", 16),
        ("items", 24),
        ("last", 64),
    ]
    assert members_of(TYPES, "nothing") == ()


def test_fields_are_where_a_policy_finds_them() -> None:
    """Catches an offset that leads to another field than the field's own path."""
    (path,) = store.bundled("sctp", SCTP)
    types = store.load(path).types
    for struct in ("sock", "sctp_transport", "sk_buff", "sctp_association"):
        size = types.struct_by_name[struct].size
        for offset in range(size):
            for field in fields_at(types, struct, offset):
                if "[" not in field.path:
                    place = types.find_field(struct, field.path)
                    assert place is not None, (struct, field.path)
                    assert place.offset == field.offset, (struct, field.path)


def test_a_store_names_the_field_that_it_writes() -> None:
    """Catches fields of the wrong struct: sctp_transport_raise_cwnd() gets a transport, and its association from it."""
    (path,) = store.bundled("sctp", SCTP)
    description = store.load(path)
    function = description.function_by_name["sctp_transport_raise_cwnd"]
    pointees = Pointees(description, function)
    written = {pointees.written(site) for site in function.sites if site.writes}
    assert {"struct sctp_transport.cwnd", "struct sctp_transport.partial_bytes_acked"} <= written


def _show(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    (path,) = store.bundled("sctp", SCTP)
    status = run(o2c, "o2c", ["show", str(path), *arguments])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_show_leads_from_an_offset_to_the_field_and_back(capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = store.bundled("sctp", SCTP)
    place = store.load(path).types.find_field("sctp_transport", "cwnd")
    assert place is not None
    for argument in (
        f"sctp_transport+{place.offset:#x}",
        f"struct sctp_transport+{place.offset}",
        "sctp_transport.cwnd",
    ):
        status, out, _ = _show(capsys, argument)
        assert (status, out) == (0, f"struct sctp_transport+{place.offset:#x}: cwnd, 4 bytes, __u32\n")
    status, out, _ = _show(capsys, f"sctp_transport+{place.offset + 1:#x}", "--json")
    assert status == 0
    assert [(item["path"], item["offset"], item["size"]) for item in json.loads(out)] == [
        ("cwnd", place.offset, 4)
    ]
    status, out, _ = _show(capsys, "sctp_transport")
    assert status == 0
    assert f"  +{place.offset:#x} cwnd, 4 bytes, __u32\n" in out


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("sctp_transport+0x10000", "`struct sctp_transport` has"),
        ("sctp_transport.cwnds", "has no field `cwnds`"),
        ("sctp_transports+8", "the description has no function or struct `sctp_transports`"),
    ],
)
def test_what_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str], place: str, message: str) -> None:
    status, out, err = _show(capsys, place)
    assert (status, out) == (1, "")
    assert message in err
