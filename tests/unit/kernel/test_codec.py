# SPDX-License-Identifier: Apache-2.0
"""Description files: round trips, versions, and broken files."""

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from o2cc.diagnostics import DiagnosticError
from o2cc.kernel import codec, store
from o2cc.kernel.description import Description

from .build import codes_of
from .test_inputs import code, mutate
from .test_scan import sample


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> Description:
    return sample(tmp_path_factory.mktemp("kernel"))


def repack(text: bytes, version: int = 1) -> bytes:
    header = struct.pack("<4sHII", b"O2K\n", version, len(text), zlib.crc32(text))
    return header + zstandard.ZstdCompressor().compress(text)


def tables(data: bytes) -> dict[str, dict[str, list[object]]]:
    found: dict[str, dict[str, list[object]]] = json.loads(zstandard.ZstdDecompressor().decompress(data[14:]))
    return found


def test_round_trip(description: Description) -> None:
    data = codec.encode(description)
    read = codec.decode(data, "x.o2k")
    assert read == description
    assert codec.encode(read) == data


def test_files(description: Description, tmp_path: Path) -> None:
    path = tmp_path / "x.o2k"
    size = store.save(description, path)
    assert path.stat().st_size == size
    assert store.load(path) == description
    with pytest.raises(DiagnosticError) as problem:
        store.load(tmp_path / "absent.o2k")
    assert code(problem) == "O2C0901"
    with pytest.raises(DiagnosticError) as problem:
        store.load(tmp_path)
    assert code(problem) == "O2C0901"
    with pytest.raises(DiagnosticError) as problem:
        store.save(description, tmp_path / "absent" / "x.o2k")
    assert code(problem) == "O2C0905"


def test_no_code_bytes(description: Description) -> None:
    # The longest instruction of the sample, as it is in the module.
    text = zstandard.ZstdDecompressor().decompress(codec.encode(description)[14:])
    assert bytes.fromhex("48c7442408") not in text
    assert "48c7442408" not in text.decode()


def test_other_versions_and_other_files(description: Description) -> None:
    data = codec.encode(description)
    text = zstandard.ZstdDecompressor().decompress(data[14:])
    cases = {
        b"": "O2C0410",
        b"\x7fELF" + bytes(100): "O2C0410",
        repack(text, 2): "O2C0411",
        data[:-1]: "O2C0412",
        data[:40]: "O2C0412",
        repack(b"[]"): "O2C0412",
        repack(b"\xff"): "O2C0412",
        repack(b"[" * 100_000): "O2C0412",
        data[:6] + b"\xff\xff\xff\x1f" + data[10:]: "O2C0412",
    }
    for content, expected in cases.items():
        with pytest.raises(DiagnosticError) as problem:
            codec.decode(content, "x.o2k")
        assert code(problem) == expected


def test_wrong_types_and_references_are_found(description: Description) -> None:
    """Change one cell of each column to something that does not belong there."""
    data = codec.encode(description)
    for table, columns in tables(data).items():
        for column, cells in columns.items():
            if not cells:
                continue
            for wrong in (-1, 10**9, "wrong", 1.5, {"a": 1}, [[["x"]]]):
                changed = tables(data)
                if type(cells[0]) is type(wrong) and not isinstance(wrong, list):
                    # A number or a text may be right anywhere; what is a reference is tested by the others.
                    continue
                if cells[0] is None and isinstance(wrong, int | str):
                    continue
                changed[table][column][0] = wrong
                with pytest.raises(DiagnosticError) as problem:
                    codec.decode(repack(json.dumps(changed).encode()), "x.o2k")
                assert code(problem) == "O2C0412", (table, column, wrong)


def test_references_must_lead_somewhere(description: Description) -> None:
    data = codec.encode(description)
    for table, column in (
        ("Site", "operand"),
        ("Site", "probe"),
        ("Function", "sites"),
        ("Description", "types"),
    ):
        for wrong in (-1, 10**9, True):
            changed = tables(data)
            cells = changed[table][column]
            position = next(i for i, cell in enumerate(cells) if cell not in (None, []))
            cells[position] = [wrong] if isinstance(cells[position], list) else wrong
            with pytest.raises(DiagnosticError) as problem:
                codec.decode(repack(json.dumps(changed).encode()), "x.o2k")
            assert code(problem) == "O2C0412"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_files_give_diagnostics_only(data: st.DataObject) -> None:
    changed = mutate(data, _encoded())
    assert codes_of(lambda: codec.decode(changed, "x.o2k")) <= {"O2C0410", "O2C0411", "O2C0412"}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_text_gives_diagnostics_only(data: st.DataObject) -> None:
    """As above, behind a correct checksum."""
    text = mutate(data, zstandard.ZstdDecompressor().decompress(_encoded()[14:]))
    assert codes_of(lambda: codec.decode(repack(text), "x.o2k")) <= {"O2C0412"}


_CACHE: list[bytes] = []


def _encoded() -> bytes:
    if not _CACHE:
        import tempfile

        with tempfile.TemporaryDirectory() as directory:
            small = sample(Path(directory))
        # Fewer types make the interesting parts more likely to be hit.
        _CACHE.append(
            codec.encode(replace(small, types=replace(small.types, structs=small.types.structs[:3])))
        )
    return _CACHE[0]
