# SPDX-License-Identifier: Apache-2.0
"""Whole scans of small modules and kernels, and the commands."""

import json
import lzma
import struct
from pathlib import Path

import pytest
import zstandard
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from o2cc.cli.scan import scan, show
from o2cc.diagnostics import DiagnosticError, SourceFile
from o2cc.driver import find_description
from o2cc.kernel import codec
from o2cc.kernel.builtin import scan_builtin
from o2cc.kernel.description import Description
from o2cc.kernel.kernels import Kernel, open_kernel
from o2cc.kernel.scan import describe_module, scan_module

from .build import (
    RELEASE,
    TEXT_START,
    assemble,
    codes_of,
    function,
    kernel_file,
    module_btf,
    module_source,
    write_kernel,
)

BODY = (
    function(
        "sample_receive",
        "call __fentry__\nmov qword ptr [rsp + 8], 7\nmov [rdi + 0x10], esi\ncall kfree_skb\nret",
    )
    + function("sample_close", "mov [rip + counter], edi\njmp local")
    + ".type local, @function\nlocal:\nmov rax, [rdi]\nmov [rax], rsi\ncall [rdi + 8]\nret\n.size local, .-local\n"
    + ".type filler_3, @function\nfiller_3:\nret\n.size filler_3, .-filler_3\n"
    + function("sample_last", "mov [rdi], rsi\nxor eax, eax\nxor eax, eax\nret")
    + ".section .rodata\n.type sample_ops, @object\nsample_ops:\n.long 2, 0\n.quad sample_receive, sample_close, 0\n"
    + ".size sample_ops, .-sample_ops\n"
    + ".data\n.type page_offset_base, @object\npage_offset_base: .quad 0\n.size page_offset_base, 8\n"
    + ".type counter, @object\ncounter: .long 0\n.size counter, 4\n.bss\n.zero 32\n"
    + '.section .data..ro_after_init,"aw"\n.type sample_fixed, @object\nsample_fixed: .quad 0\n.size sample_fixed, 8\n'
    + '.section __ksymtab,"a"\n.globl __ksymtab_sample_close\n__ksymtab_sample_close: .long sample_close - .\n'
    + module_btf()
)
MODULE = module_source(BODY)


def sample(directory: Path) -> Description:
    """The description of the sample module."""
    return describe_module(assemble(MODULE), "sample.ko", "sample", write_kernel(directory))


def test_identity(tmp_path: Path) -> None:
    found = sample(tmp_path)
    assert (found.release, found.target.name, found.target.kind) == (RELEASE, "sample", "module")
    assert found.target.build_id == "01020304"
    assert len(found.target.sha256) == 64
    assert found.kernel.build_id == "aabbccdd"


def test_functions_and_imports(tmp_path: Path) -> None:
    found = sample(tmp_path)
    by_name = found.function_by_name
    assert sorted(by_name) == ["filler_3", "local", "sample_close", "sample_last", "sample_receive"]
    assert set(found.imports) == {"__fentry__", "kfree_skb"}
    assert found.exports == ("sample_close",)
    assert by_name["sample_receive"].address_taken
    assert not by_name["local"].address_taken
    # A function of the kernel has the same name.
    assert [name for name, item in sorted(by_name.items()) if item.ambiguous] == ["filler_3"]
    prototype = by_name["sample_receive"].prototype
    assert prototype is not None
    assert prototype.parameters[0].type.pointee_struct == "sk_buff"
    assert by_name["sample_receive"].sites[0].frame_offset == 8
    # Its prototype is in no BTF: that of the kernel's function of the same name is not it.
    assert by_name["sample_last"].prototype is None


def test_a_module_without_types_of_its_own(tmp_path: Path) -> None:
    source = MODULE.replace(".BTF", ".other")
    found = describe_module(assemble(source), "sample.ko", "sample", write_kernel(tmp_path))
    assert all(item.prototype is None for item in found.functions)
    assert any("no BTF" in problem for problem in found.problems)
    assert found.types.prototype_by_name["kfree_skb"].parameters[0].name == "skb"
    assert found.ops_tables[0].type is None


def test_the_last_function_of_the_text_takes_no_probe(tmp_path: Path) -> None:
    found = sample(tmp_path)
    assert found.function_by_name["sample_last"].sites[0].probe.offset is None
    assert found.function_by_name["sample_receive"].sites[0].probe.offset is not None


def test_structs_that_only_a_cast_leads_to(tmp_path: Path) -> None:
    kernel, code = write_kernel(tmp_path), assemble(MODULE)
    assert "unreached" not in sample(tmp_path).types.struct_by_name
    found = describe_module(code, "sample.ko", "sample", kernel, ("unreached",))
    assert found.types.struct_by_name["unreached"].size == 16
    assert codes_of(lambda: describe_module(code, "sample.ko", "sample", kernel, ("none",))) == {"O2C0210"}


def test_arguments_of_known_functions(tmp_path: Path) -> None:
    call = next(
        item for item in sample(tmp_path).function_by_name["sample_receive"].sites if item.kind == "call"
    )
    assert len(call.arguments) == 1
    assert call.arguments[0] is not None
    assert call.arguments[0].source.kind == "argument"


def test_sections_and_anchors(tmp_path: Path) -> None:
    sections = sample(tmp_path).section_by_name
    assert (sections[".text"].anchor_symbol, sections[".text"].anchor_offset) == ("sample_receive", 0)
    # `page_offset_base` is also a symbol of the kernel.
    assert (sections[".data"].anchor_symbol, sections[".data"].anchor_offset) == ("counter", 8)
    assert sections[".bss"].anchor_symbol is None
    assert sections[".bss"].size == 32
    assert sections[".data..ro_after_init"].after_init_readonly
    assert not sections[".rodata"].writable
    assert ".modinfo" not in sections


def test_ops_tables(tmp_path: Path) -> None:
    (table,) = sample(tmp_path).ops_tables
    assert (table.symbol, table.type, table.type_inferred, table.writable) == (
        "sample_ops",
        "proto_ops",
        True,
        False,
    )
    assert table.slots == (("recv", "sample_receive"), ("close", "sample_close"))


def test_determinism(tmp_path: Path) -> None:
    first = codec.encode(sample(tmp_path))
    assert codec.encode(sample(tmp_path)) == first


def test_packed_modules_give_the_same_facts(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path)
    data = assemble(MODULE)
    for name, content in (
        ("sample.ko", data),
        ("sample.ko.xz", lzma.compress(data)),
        ("sample.ko.zst", zstandard.ZstdCompressor().compress(data)),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert scan_module(path, kernel) == sample(tmp_path)


def unpacked_package(directory: Path) -> Path:
    """The sample module where a kernel's package has it, its kernel as `boot/vmlinuz-RELEASE`; the module's path."""
    (directory / "boot").mkdir()
    (directory / "boot" / f"vmlinuz-{RELEASE}").write_bytes(kernel_file())
    path = directory / "lib" / "modules" / RELEASE / "kernel" / "net" / "sample.ko.xz"
    path.parent.mkdir(parents=True)
    path.write_bytes(lzma.compress(assemble(MODULE)))
    return path


def test_the_compiler_scans_a_module_that_is_given_as_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("O2C_CACHE", str(tmp_path / "cache"))
    path = unpacked_package(tmp_path)
    assert find_description("sample", str(path), SourceFile("sample.o2c", "")) == sample(tmp_path)


def test_a_module_whose_kernel_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("O2C_CACHE", str(tmp_path / "cache"))
    path = unpacked_package(tmp_path)
    (tmp_path / "boot" / f"vmlinuz-{RELEASE}").unlink()
    with pytest.raises(DiagnosticError) as problem:
        find_description("sample", str(path), SourceFile("sample.o2c", ""))
    assert problem.value.diagnostics[0].code == "O2C0421"


def test_a_module_of_another_kernel(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path, "6.1.0-other")
    with pytest.raises(DiagnosticError) as problem:
        describe_module(assemble(MODULE), "sample.ko", "sample", kernel)
    assert problem.value.diagnostics[0].code == "O2C0422"
    assert "6.1.0-other" in problem.value.diagnostics[0].message


def test_files_that_are_no_modules(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path)
    for data in (b"", b"junk" * 100, kernel_file(), assemble(function("f", "ret"))):
        with pytest.raises(DiagnosticError) as problem:
            describe_module(data, "x.ko", "x", kernel)
        assert problem.value.diagnostics[0].code in ("O2C0401", "O2C0402")


@pytest.mark.parametrize("new", [False, True])
def test_builtin_functions(tmp_path: Path, new: bool) -> None:
    # mov [rdi + 8], esi; inc dword [rip + ip6_counter]; call kfree_skb; jmp __x86_return_thunk
    at = TEXT_START + 0x100
    code = bytes.fromhex("897708") + b"\xff\x05" + struct.pack("<i", TEXT_START + 0x204030 - (at + 9))
    code += b"\xe8" + struct.pack("<i", TEXT_START + 0x180 - (at + 14))
    code += b"\xe9" + struct.pack("<i", TEXT_START + 0x1C0 - (at + 19))
    data = struct.pack("<QQQQ", 2, at, 0, 0)
    path = tmp_path / "vmlinux"
    path.write_bytes(kernel_file(code=code, new=new, data=data))
    found = scan_builtin(Kernel(path), ["ip6_*"], None)
    assert found.target.kind == "builtin"
    assert [item.name for item in found.functions] == ["ip6_sample", "ip6_helper"]
    assert found.imports == ("kfree_skb",)
    first = found.functions[0]
    assert [(item.kind, item.target) for item in first.sites] == [
        ("store", None),
        ("read_modify_write", None),
        ("call", "kfree_skb"),
        ("return", None),
    ]
    place = first.sites[1].operand
    assert place is not None
    assert place.static is not None
    assert (place.static.section, place.static.symbol, place.static.offset) == (
        ".data",
        "ip6_counter",
        0x4030,
    )
    (table,) = found.ops_tables
    assert (table.symbol, table.type, table.slots) == ("ip6_ops", "proto_ops", (("recv", "ip6_sample"),))
    assert {item.name for item in found.symbols} == {"ip6_sample", "ip6_helper", "ip6_counter", "ip6_ops"}
    assert found.section_by_name[".text"].anchor_symbol == "_text"
    with pytest.raises(DiagnosticError) as problem:
        scan_builtin(Kernel(path), ["nothing_*"], None)
    assert problem.value.diagnostics[0].code == "O2C0420"


def test_finding_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("O2C_CACHE", str(tmp_path))
    unpacked = tmp_path / "kernels" / RELEASE
    (unpacked / "boot").mkdir(parents=True)
    modules = unpacked / "lib" / "modules" / RELEASE / "kernel"
    modules.mkdir(parents=True)
    (unpacked / "boot" / f"vmlinuz-{RELEASE}").write_bytes(kernel_file())
    (modules / "my-sample.ko").write_bytes(assemble(MODULE))
    for name in (RELEASE, str(unpacked), str(unpacked / "boot" / f"vmlinuz-{RELEASE}")):
        kernel = open_kernel(name)
        assert kernel.release == RELEASE
        assert kernel.find_module("my_sample").name == "my-sample.ko"
        with pytest.raises(DiagnosticError):
            kernel.find_module("absent")
    for name in ("6.9.9-absent", str(tmp_path / "nowhere"), str(modules)):
        with pytest.raises(DiagnosticError) as problem:
            open_kernel(name)
        assert problem.value.diagnostics[0].code == "O2C0421"


def test_the_right_one_of_several_kernels(tmp_path: Path) -> None:
    for release in ("6.1.0-a", RELEASE, "6.9.0-z"):
        (tmp_path / f"vmlinuz-{release}").write_bytes(kernel_file(release))
    (tmp_path / "sample.ko").write_bytes(assemble(MODULE))
    arguments = [str(tmp_path / "sample.ko"), "--kernel", str(tmp_path), "-o", str(tmp_path / "x.o2k")]
    result = CliRunner().invoke(scan, arguments)
    assert result.exit_code == 0, result.output
    assert open_kernel(str(tmp_path)).release == "6.9.0-z"


def test_the_commands(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(kernel_file())
    (tmp_path / "sample.ko").write_bytes(assemble(MODULE))
    output = tmp_path / "out.o2k"
    runner = CliRunner()
    made = runner.invoke(
        scan,
        [str(tmp_path / "sample.ko"), "--kernel", str(tmp_path / "vmlinux"), "-o", str(output), "--json"],
    )
    assert made.exit_code == 0, made.output
    assert output.is_file()
    shown = runner.invoke(show, [str(output)])
    assert shown.exit_code == 0
    assert "module sample of 6.1.0-test" in shown.output
    one = runner.invoke(show, [str(output), "sample_receive"])
    assert "block +0x0" in one.output
    assert "kfree_skb" in one.output
    place = runner.invoke(show, [str(output), "sample_receive+0xe"])
    assert "store (mov), 3 bytes" in place.output
    as_json = runner.invoke(show, [str(output), "sample_receive+0xe", "--json"])
    assert json.loads(as_json.output)["operand"]["base"] == "rdi"
    whole = runner.invoke(show, [str(output), "--json"])
    assert json.loads(whole.output)["target"]["name"] == "sample"
    wrong = runner.invoke(show, [str(output), "sample_recieve"])
    assert wrong.exit_code == 1
    assert "did you mean `sample_receive`" in wrong.output
    assert runner.invoke(show, [str(output), "sample_receive+0x1"]).exit_code == 1
    assert runner.invoke(scan, []).exit_code == 2
    everything = runner.invoke(
        scan, ["--all", str(tmp_path), "--kernel", str(tmp_path / "vmlinux"), "--json"]
    )
    assert json.loads(everything.stdout)["modules"] == 1


def test_bad_arguments_are_diagnostics(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(kernel_file())
    (tmp_path / "junk.ko").write_bytes(b"junk")
    output = tmp_path / "out.o2k"
    kernel = ["--kernel", str(tmp_path / "vmlinux")]
    for arguments in (
        [str(tmp_path / "absent.ko"), *kernel],
        [str(tmp_path / "junk.ko"), *kernel],
        [str(tmp_path), *kernel],
        ["nothing", *kernel],
        ["--builtin", "no_such_*", *kernel],
        ["--all", str(tmp_path / "nowhere")],
        [str(tmp_path / "junk.ko")],
    ):
        result = CliRunner().invoke(scan, [*arguments, "-o", str(output)])
        assert result.exit_code == 1, (arguments, result.output)
        assert "error[O2C0" in result.output
        assert not output.exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_modules_give_diagnostics_only(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    if not path.exists():
        path.write_bytes(kernel_file())
    changed = bytearray(assemble(MODULE))
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))

    def read() -> None:
        found = describe_module(bytes(changed), "sample.ko", "sample", Kernel(path))
        assert codec.decode(codec.encode(found), "x") == found

    assert all(code.startswith("O2C04") for code in codes_of(read))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_kernels_give_diagnostics_only(data: st.DataObject, tmp_path: Path) -> None:
    changed = bytearray(kernel_file(data=struct.pack("<QQ", 2, TEXT_START + 0x100)))
    # The tables, BTF and headers, not the megabytes of padding between them.
    interesting = [(0, 64), (0x100, 0x300), (len(changed) - 600, len(changed)), *_tables(bytes(changed))]
    for _ in range(data.draw(st.integers(1, 8))):
        low, high = data.draw(st.sampled_from(interesting))
        changed[data.draw(st.integers(low, high - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, len(changed))) :]
    path = tmp_path / "vmlinux"
    path.write_bytes(bytes(changed))
    found = codes_of(lambda: scan_builtin(Kernel(path), ["ip6_*"], None))
    assert all(code.startswith("O2C04") for code in found)


def _tables(kernel: bytes) -> list[tuple[int, int]]:
    banner, types = kernel.index(b"Linux version"), kernel.index(b"\x9f\xeb\x01\x00")
    return [(banner, banner + 0x9000), (types, types + 0x400)]
