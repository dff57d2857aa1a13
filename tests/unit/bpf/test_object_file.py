# SPDX-License-Identifier: Apache-2.0
"""The object as other tools read it: ELF with pyelftools, BTF with a reader of our own."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection

from o2cc.bpf.emit import emit_object, emit_test_object
from o2cc.bpf.info import HookInfo, MapInfo, TableInfo, read
from o2cc.bpf.layout import Layout
from o2cc.ir import nodes as ir
from o2cc.ir.verifier import verify
from tests.unit.bpf import modules
from tests.unit.bpf.btf_reader import Btf, Section, read_btf, read_ext
from tests.unit.bpf.elf_sections import section_named, symbol_table


def elf_of(data: bytes) -> ELFFile:
    return ELFFile(io.BytesIO(data))


def btf_of(data: bytes) -> tuple[Btf, dict[str, Section]]:
    elf = elf_of(data)
    btf = read_btf(section_named(elf, ".BTF").data())
    return btf, read_ext(section_named(elf, ".BTF.ext").data(), btf)


def program_code(data: bytes) -> dict[str, bytes]:
    elf = elf_of(data)
    found = {}
    for symbol in symbol_table(elf).iter_symbols():
        if symbol["st_info"]["type"] == "STT_FUNC":
            section = elf.get_section(symbol["st_shndx"])
            found[symbol.name] = section.data()[symbol["st_value"] : symbol["st_value"] + symbol["st_size"]]
    return found


@pytest.fixture(scope="module", params=list(Layout))
def built(request: pytest.FixtureRequest) -> tuple[Layout, bytes]:
    layout: Layout = request.param
    return layout, emit_object(modules.module(), layout=layout, sources=modules.SOURCES).data


def test_the_module_of_these_tests_is_valid() -> None:
    assert verify(modules.module()) == ()


def test_sections_are_what_libbpf_expects_and_nothing_else(built: tuple[Layout, bytes]) -> None:
    layout, data = built
    names = [section.name for section in elf_of(data).iter_sections()]
    data_sections = [".maps", ".rodata", ".data", ".bss", "license", ".text", ".rel.text"]
    hooks = ["kprobe/kfree", "kretprobe/__kmalloc", "raw_tracepoint/kmalloc", "syscall"]
    if layout is Layout.SITE:
        programs = [
            "kprobe/sctp_outq_tail+0x2c",
            "kprobe/sctp_outq_tail+0x40",
            "kprobe/sctp_rcv.isra.0+0x8b",
            "kretprobe/sctp_init",
        ]
    else:
        programs = ["kprobe"]
    code = [name for program in (*programs, *hooks) for name in (program, f".rel{program}")]
    rest = [".BTF", ".BTF.ext", ".o2c.info"]
    assert names == ["", ".strtab", ".symtab", *data_sections, *code, *rest]


def test_the_license_is_gpl(built: tuple[Layout, bytes]) -> None:
    assert section_named(elf_of(built[1]), "license").data() == b"GPL\0"


def test_programs_and_subprograms_have_global_symbols(built: tuple[Layout, bytes]) -> None:
    layout, data = built
    named = {
        Layout.SITE: {
            "o2c_0_sctp_outq_tail",
            "o2c_1_sctp_outq_tail",
            "o2c_2_sctp_rcv_isra_0",
            "o2c_3_sctp_rcv_isra_0",
            "o2c_4_sctp_init",
        },
        Layout.SHAPE: {"shape_0_store_rbx", "shape_1_store_rdi"},
    }[layout]
    hooks = {"on_free", "on_return", "on_kmalloc", "on_request"}
    assert set(program_code(data)) == named | hooks | {"decide"}
    symbols = symbol_table(elf_of(data))
    assert symbols["sh_info"] == 1
    assert all(s["st_info"]["bind"] == "STB_GLOBAL" for s in list(symbols.iter_symbols())[1:])


def test_every_instruction_that_is_relocated_is_of_the_right_kind(built: tuple[Layout, bytes]) -> None:
    elf = elf_of(built[1])
    for section in elf.iter_sections():
        if isinstance(section, RelocationSection):
            code = elf.get_section(section["sh_info"]).data()
            offsets = [relocation["r_offset"] for relocation in section.iter_relocations()]
            assert offsets == sorted(set(offsets))
            for relocation in section.iter_relocations():
                opcode = code[relocation["r_offset"]]
                assert (relocation["r_info_type"], opcode) in ((1, 0x18), (10, 0x85))


def test_btf_describes_maps_tables_and_functions(built: tuple[Layout, bytes]) -> None:
    btf, _ = btf_of(built[1])
    _, key = btf.named("struct", "objects_key")
    _, entry = btf.named("struct", "objects_entry")
    assert [row[0] for row in key.rows] == ["base"]
    assert [row[0] for row in entry.rows] == ["end"]
    assert (key.size_or_type, entry.size_or_type) == (8, 8)
    _, row = btf.named("struct", "counters_row")
    assert (row.size_or_type, [(r[0], r[2]) for r in row.rows]) == (16, [("denied", 0), ("small", 64)])
    _, function = btf.named("func", "decide")
    prototype = btf.types[function.size_or_type]
    assert [r[0] for r in prototype.rows] == ["a0_address", "a1_size", "a2_site"]
    assert {btf.types[int(r[1])].name for r in prototype.rows} == {"unsigned long long"}
    assert {t.name for t in btf.types if t.kind == "datasec"} == {
        ".maps",
        ".rodata",
        ".data",
        ".bss",
        "license",
    }


def test_every_function_has_its_type_and_its_first_line(built: tuple[Layout, bytes]) -> None:
    data = built[1]
    btf, sections = btf_of(data)
    elf = elf_of(data)
    for symbol in symbol_table(elf).iter_symbols():
        if symbol["st_info"]["type"] != "STT_FUNC":
            continue
        section = sections[elf.get_section(symbol["st_shndx"]).name]
        types = {offset: btf.types[type_].name for offset, type_ in section.functions}
        assert types[symbol["st_value"]] == symbol.name
        assert symbol["st_value"] in {line[0] for line in section.lines}
    for name, section in sections.items():
        code = section_named(elf, name).data()
        offsets = [line[0] for line in section.lines]
        assert offsets == sorted(set(offsets))
        assert all(offset % 8 == 0 and code[offset] != 0 for offset in offsets)


def test_lines_name_the_policy() -> None:
    data = emit_object(modules.module(), layout=Layout.SITE, sources=modules.SOURCES).data
    _, sections = btf_of(data)
    write, call = "write struct sock { sk_err }", "call imports"
    assert sections["kprobe/sctp_outq_tail+0x2c"].lines == [(0, "sctp.o2c", write, 2, 5)]
    assert sections["kretprobe/sctp_init"].lines == [(0, "sctp.o2c", call, 3, 5)]
    two = sections["kprobe/sctp_rcv.isra.0+0x8b"]
    assert [line[1:] for line in two.lines] == [("sctp.o2c", write, 2, 5)] * 2
    assert {line[2] for line in sections[".text"].lines} == {write, call}


def test_a_place_without_source_is_still_named() -> None:
    plain = modules.module()
    sites = tuple(replace(site, span=None) for site in plain.sites)
    _, sections = btf_of(emit_object(replace(plain, sites=sites), layout=Layout.SITE, sources={}).data)
    assert sections["kprobe/sctp_outq_tail+0x2c"].lines == [(0, "", "store at sctp_outq_tail+0x2c", 0, 0)]


def test_checks_without_sites_and_functions_without_callers_are_left_out(built: tuple[Layout, bytes]) -> None:
    assert not any(name in built[1] for name in (b"unused", b"nobody", b"rax_"))


def test_the_description_reads_back(built: tuple[Layout, bytes]) -> None:
    layout, data = built
    info = read(data)
    assert info.name == "sctp"
    assert info.layout == layout.value
    assert info.identity == {"release": "6.1.0-57-amd64", "target": "sctp", "build_id": "abc"}
    assert info.maps[0] == MapInfo("objects", "hash", ("base",), ("end",), 1024)
    tables = {table.name: table for table in info.tables}
    assert tables["owners"] == TableInfo("owners", ".bss", 0, 1, 4096, (("owner", 0, 1),))
    assert tables["counters"] == TableInfo(
        "counters", ".data", 0, 16, 16, (("denied", 0, 8), ("small", 8, 2))
    )
    assert tables["sizes"].section == ".rodata"
    assert info.hooks[0] == HookInfo("on_free", "kprobe", "kfree", "on_free")
    assert info.discharged == {"own-frame": 2}
    site = info.sites[3]
    assert (site.number, site.function, site.offset, site.probe_offset) == (3, "sctp_rcv.isra.0", 0x93, 0x8B)
    assert (site.kind, site.check, site.note) == ("store", "store_rdi", "before a call")
    assert (site.file, site.line) == ("sctp.o2c", 2)
    assert [s.return_probe for s in info.sites] == [False, False, False, False, True]
    programs = set(program_code(data))
    assert {s.program for s in info.sites} <= programs
    cookies = [s.cookie for s in info.sites]
    assert cookies == ([None] * 5 if layout is Layout.SITE else [0, 2, 1, 3, 4])


@pytest.mark.parametrize("layout", list(Layout))
def test_a_site_that_another_one_covers_has_no_program_but_is_described(layout: Layout) -> None:
    plain = modules.module()
    sites = (*plain.sites[:1], replace(plain.sites[1], covered_by=0), *plain.sites[2:])
    data = emit_object(replace(plain, sites=sites), layout=layout, sources=modules.SOURCES).data
    described = read(data).sites
    assert [site.number for site in described] == [0, 1, 2, 3, 4]
    assert [site.program == "" for site in described] == [False, True, False, False, False]
    assert "o2c_1_sctp_outq_tail" not in program_code(data)
    assert described[1].cookie is None


@pytest.mark.parametrize("layout", list(Layout))
def test_the_loader_is_told_which_probes_must_stay_breakpoints(layout: Layout) -> None:
    """By the place of the probe, which several instructions can share."""
    breakpoints = {("sctp_rcv.isra.0", 0x8B)}
    made = emit_object(modules.module(), layout=layout, sources=modules.SOURCES, breakpoints=breakpoints)
    assert [site.number for site in read(made.data).sites if site.keep_int3] == [2, 3]


def test_initial_values_are_in_the_data_sections(built: tuple[Layout, bytes]) -> None:
    elf = elf_of(built[1])
    content = section_named(elf, ".rodata").data()
    assert content[:24] == bytes([1, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    assert section_named(elf, ".data").data()[8:10] == b"\7\0"
    assert section_named(elf, ".bss")["sh_type"] == "SHT_NOBITS"


def test_statistics_count_what_is_there(built: tuple[Layout, bytes]) -> None:
    layout, data = built
    statistics = emit_object(modules.module(), layout=layout, sources=modules.SOURCES).statistics
    code = program_code(data)
    shared = len(code.pop("decide")) // 8
    assert statistics.programs == len(code)
    assert statistics.subprograms == 1
    assert dict(statistics.program_instructions) == {name: len(body) // 8 for name, body in code.items()}
    assert statistics.instructions == sum(len(body) // 8 for body in code.values()) + shared
    assert statistics.bytes == len(data)


def test_test_programs_have_the_code_of_the_real_ones() -> None:
    real = program_code(emit_object(modules.module(), layout=Layout.SITE, sources=modules.SOURCES).data)
    data = emit_test_object(modules.module(), sources=modules.SOURCES).data
    tested = program_code(data)
    assert {name: real[name] for name in tested} == tested
    assert {"o2c_0_sctp_outq_tail", "o2c_4_sctp_init", "on_request", "decide"} == set(tested) - {
        "o2c_1_sctp_outq_tail",
        "o2c_2_sctp_rcv_isra_0",
        "o2c_3_sctp_rcv_isra_0",
    }
    names = [section.name for section in elf_of(data).iter_sections()]
    assert "syscall" in names
    assert not any(name.startswith("kprobe") for name in names)


def test_sites_of_one_check_share_their_code_but_for_the_parameters() -> None:
    code = program_code(emit_object(modules.module(), layout=Layout.SITE, sources=modules.SOURCES).data)
    one, other = code["o2c_0_sctp_outq_tail"], code["o2c_2_sctp_rcv_isra_0"]
    differing = {position // 8 for position, (a, b) in enumerate(zip(one, other, strict=True)) if a != b}
    assert len(differing) == 2  # displacement and number
    assert (8).to_bytes(4, "little") in one
    assert (1 << 31).to_bytes(4, "little") in other


@pytest.mark.parametrize("layout", list(Layout))
def test_the_same_module_gives_the_same_bytes_in_every_process(layout: Layout) -> None:
    script = (
        "import hashlib; from o2cc.bpf.emit import emit_object; from o2cc.bpf.layout import Layout;"
        "from tests.unit.bpf import modules;"
        f"data = emit_object(modules.module(), layout=Layout({layout.value!r}), sources=modules.SOURCES).data;"
        "print(hashlib.sha256(data).hexdigest())"
    )
    root = Path(__file__).parents[3]
    hashes = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=root,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    here = emit_object(modules.module(), layout=layout, sources=modules.SOURCES).data
    again = emit_object(modules.module(), layout=layout, sources=modules.SOURCES).data
    assert hashes == {hashlib.sha256(here).hexdigest()} == {hashlib.sha256(again).hexdigest()}


def test_kernel_symbols_are_weak_externs_without_a_type() -> None:
    plain = modules.module()
    check = plain.checks[0]
    first = check.blocks[0]
    block = replace(
        first, instructions=(ir.Symbol(ir.Value("base"), "page_offset_base"), *first.instructions)
    )
    used = replace(block, terminator=ir.Return(ir.Value("base")))
    checks = (replace(check, blocks=(used,)), *plain.checks[1:])
    data = emit_object(replace(plain, checks=checks), layout=Layout.SITE, sources={}).data
    btf, _ = btf_of(data)
    _, section = btf.named("datasec", ".ksyms")
    _, variable = btf.named("var", "page_offset_base")
    assert section.rows[0][1:] == (0, 0)
    assert (variable.size_or_type, variable.rows) == (0, [(2,)])
    symbols = symbol_table(elf_of(data)).get_symbol_by_name("page_offset_base")
    assert symbols is not None
    (symbol,) = symbols
    assert (symbol["st_shndx"], symbol["st_info"]["bind"]) == ("SHN_UNDEF", "STB_WEAK")


def test_bpftool_reads_the_btf(built: tuple[Layout, bytes], tmp_path: Path) -> None:
    tool = shutil.which("bpftool") or "/usr/sbin/bpftool"
    if not Path(
        tool
    ).exists():  # the structure is checked above; this adds a second reader where there is one
        return
    file = tmp_path / "object.bpf.o"
    file.write_bytes(built[1])
    done = subprocess.run([tool, "btf", "dump", "file", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"FUNC 'decide' type_id=\d+ linkage=global", done.stdout)
