# SPDX-License-Identifier: Apache-2.0
"""What is written down of loaded compartments, and what commands make of names."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from o2cc.bpf.info import HeapInfo
from o2cc.cli.common import run
from o2cc.cli.o2c import o2c
from o2cc.diagnostics import DiagnosticError
from o2cc.runtime import loader, running_kernel, state
from o2cc.runtime.enforcement import Needs, needs_of, require_module
from o2cc.runtime.kernel_text import Segment, locate, parse_segments
from o2cc.runtime.libbpf import LoadError
from tests.unit.runtime.made import info, site


@pytest.fixture(autouse=True)
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(state, "RUN", tmp_path / "run")
    monkeypatch.setattr(state, "BPFFS", tmp_path / "bpf")
    (tmp_path / "bpf").mkdir()
    return tmp_path


def save(name: str, *, pinned: bool = True) -> state.State:
    saved = state.State(
        name,
        1.0,
        state.boot_id(),
        3,
        (state.Failure(1, "f+0x1", "no"),),
        False,
        None,
        (state.Failure(2, "g", "r"),),
    )
    state.save(saved, b"object")
    if pinned:
        (state.BPFFS / name).mkdir()
    return saved


def code_of(refusal: pytest.ExceptionInfo[DiagnosticError]) -> str:
    (diagnostic,) = refusal.value.diagnostics
    return diagnostic.code


def test_what_was_saved_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = save("a")
    monkeypatch.setattr(state, "read_info", lambda data, path: info(site(0)))
    assert state.load("a")[0] == saved
    assert state.names() == ("a",)


@pytest.mark.parametrize("place", ["RUN", "BPFFS"])
def test_who_may_not_look_is_not_told_that_nothing_is_loaded(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save("a", pinned=False)
    forbidden, iterdir = getattr(state, place), Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path == forbidden:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return iter(list(iterdir(path)))

    monkeypatch.setattr(Path, "iterdir", refuse)
    for command in (["status"], ["unload", "--all"]):
        assert run(o2c, "o2c", command) == 1
        shown = capsys.readouterr()
        assert "error[O2C0805]" in shown.err
        assert "run as root" in shown.err
        assert "no compartment is loaded" not in shown.out


def test_another_boot_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    save("a")
    monkeypatch.setattr(state, "boot_id", lambda: "later")
    with pytest.raises(DiagnosticError) as refusal:
        state.load("a")
    assert code_of(refusal) == "O2C0802"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"failures": 3}', '{"name": "a", "failures": [], "observed": []}']
)
def test_a_damaged_record_is_not_loaded(content: str) -> None:
    save("a")
    (state.RUN / "a" / "state.json").write_text(content)
    with pytest.raises(DiagnosticError) as refusal:
        state.load("a")
    assert code_of(refusal) == "O2C0802"


def test_pins_without_a_record_are_leftovers() -> None:
    save("a")
    (state.BPFFS / "b").mkdir()
    assert state.leftovers() == ("b",)
    assert state.names() == ("a",)


def test_a_record_without_pins_is_not_loaded() -> None:
    save("a", pinned=False)
    assert state.names() == ()
    assert state.recorded() == ("a",)


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".", "..", "a\0b", "-x", "x" * 40, "a b", "ä"])
def test_what_is_no_name_is_refused_before_it_is_a_path(name: str) -> None:
    for act in (state.only, loader.unload):
        with pytest.raises(DiagnosticError) as refusal:
            act(name)
        assert code_of(refusal) == "O2C0808"


def test_the_only_compartment_needs_no_name() -> None:
    with pytest.raises(DiagnosticError) as refusal:
        state.only(None)
    assert code_of(refusal) == "O2C0802"
    save("a")
    assert state.only(None) == "a"
    save("b")
    with pytest.raises(DiagnosticError) as refusal:
        state.only(None)
    assert code_of(refusal) == "O2C0807"


def test_one_process_at_a_time() -> None:
    with state.locked("a"), pytest.raises(DiagnosticError) as refusal, state.locked("a"):
        pass
    assert code_of(refusal) == "O2C0806"
    with state.locked("a"):
        pass


def test_unloading_what_is_not_there_names_what_is() -> None:
    save("a")
    with pytest.raises(DiagnosticError) as refusal:
        loader.unload("b")
    assert code_of(refusal) == "O2C0802"
    assert "`a`" in (refusal.value.diagnostics[0].help or "")


def test_half_made_pins_are_removed() -> None:
    links = state.BPFFS / "a" / "links"
    links.mkdir(parents=True)
    (links / "7").touch()
    (links / "o2c_kfree").touch()
    assert loader.unload("a") == 1
    assert not (state.BPFFS / "a").exists()


def test_the_verifier_s_last_words_are_shown() -> None:
    log = "\n".join(f"line {n}" for n in range(100))
    (diagnostic,) = loader.verifier_diagnostic(LoadError(13, ("first", log))).diagnostics
    assert diagnostic.code == "O2C0820"
    assert diagnostic.notes[-1] == "line 99"
    assert len(diagnostic.notes) == loader.LOG_LINES
    assert "bug of o2cc" in (diagnostic.help or "")


def test_needs_come_from_the_identity(tmp_path: Path) -> None:
    assert needs_of(info()) == Needs(frozenset(), False)
    for action in ("deny", "panic"):  # a check that did not run has nothing to deny any more
        assert needs_of(info(on_missed=action)).missing == {f"on missed {action}"}
    needs = needs_of(info(needs="deny,private heap,private stack", on_missed="kill"))
    assert needs.module == {"deny", "private heap", "on missed kill"}
    assert needs.missing == {"private stack"}
    require_module(needs_of(info()), info(), tmp_path / "nothing")
    heap = HeapInfo(1 << 20, 72, 8, "sctp.o2c", 12, ())
    with pytest.raises(DiagnosticError) as refusal:
        require_module(needs, replace(info(), heap=heap), tmp_path / "nothing")
    (diagnostic,) = refusal.value.diagnostics
    assert diagnostic.code == "O2C0830"
    assert any("make -C bpf_runtime/module" in note for note in diagnostic.notes)
    assert any("dkms install" in note for note in diagnostic.notes)
    assert "`heap private` is at sctp.o2c:12" in diagnostic.notes
    assert "the heap is tracked: `--degrade report`" in (diagnostic.help or "")
    assert "--degrade" in (diagnostic.help or "")


def test_another_kernel_is_refused_with_both_names() -> None:
    (diagnostic,) = running_kernel.mismatches({"release": "6.1.0-1-nowhere"})
    assert diagnostic.code == "O2C0810"
    assert "6.1.0-1-nowhere" in diagnostic.message


def test_build_ids_are_found_behind_other_notes() -> None:
    other = (
        (4).to_bytes(4, "little")
        + (3).to_bytes(4, "little")
        + (9).to_bytes(4, "little")
        + b"Xen\0"
        + b"abc\0"
    )
    wanted = (
        (4).to_bytes(4, "little")
        + (2).to_bytes(4, "little")
        + (3).to_bytes(4, "little")
        + b"GNU\0"
        + b"\xbe\xef"
    )
    assert running_kernel.build_id(other + wanted) == "beef"
    assert running_kernel.build_id(other) == ""
    assert running_kernel.build_id(b"\xff" * 11) == ""


def test_addresses_are_found_in_a_core_file() -> None:
    header = b"\x7fELF\x02" + bytes(59)
    load = (1).to_bytes(8, "little") + b"".join(
        n.to_bytes(8, "little") for n in (0x400, 0xFFFF0000, 0, 0x100, 0x100, 0)
    )
    note = (4).to_bytes(8, "little") + bytes(48)
    segments = parse_segments(header, note + load)
    assert segments == (Segment(0xFFFF0000, 0x100, 0x400),)
    assert locate(segments, 0xFFFF00F8, 15) == (0x4F8, 8)
    assert locate(segments, 0xFFFF0100, 15) is None
    with pytest.raises(ValueError, match="ELF"):
        parse_segments(b"MZ", b"")


def test_optimization_is_restored_after_a_killed_loader(tmp_path: Path) -> None:
    setting, marker = tmp_path / "setting", tmp_path / "run" / "marker"
    setting.write_text("1\n")
    off = running_kernel.KprobeOptimizationOff(setting, marker)
    off.__enter__()
    assert setting.read_text() == "0"
    running_kernel.restore_optimization(setting, marker)  # the process above is gone
    assert setting.read_text() == "1"
    assert not marker.exists()


def test_optimization_that_was_off_stays_off(tmp_path: Path) -> None:
    setting, marker = tmp_path / "setting", tmp_path / "marker"
    setting.write_text("0\n")
    with running_kernel.KprobeOptimizationOff(setting, marker):
        pass
    running_kernel.restore_optimization(setting, marker)
    assert setting.read_text() == "0\n"
