# SPDX-License-Identifier: Apache-2.0
"""LLVM text -> machine code: runs LLVM and takes its object apart again.

LLVM writes one object whose every function has a section of its own; what is kept of it is the code, the
relocations by symbol name, and the line numbers from its BTF.ext.
"""

from __future__ import annotations

import faulthandler
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import llvmlite.binding as llvm

from o2cc.bpf.elf_writer import RelocationType
from o2cc.diagnostics import DiagnosticError, error
from o2cc.second_process import Task, begin

CPU = "v3"  # 32-bit arithmetic and jumps, fetching atomics: all there since Linux 5.12
_SPEED = 2
_STACK = 16384  # bytes; LLVM ends the process above its limit, so this is out of the way of `limits.STACK`
_LARGE = (
    250_000  # characters of one function, from which on a jump may be too far; LLVM then ends its process
)
_REFUSED = 3  # exit status of a child whose text LLVM refused

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQ")
_SHT_SYMTAB = 2
_SHT_REL = 9


@dataclass(frozen=True, slots=True)
class Relocation:
    """The instruction at byte ``offset`` refers to ``symbol``."""

    offset: int
    symbol: str
    type: RelocationType


@dataclass(frozen=True, slots=True)
class MachineCode:
    """A compiled function.  ``lines`` are (byte offset, line number), by offset."""

    code: bytes
    relocations: tuple[Relocation, ...]
    lines: tuple[tuple[int, int], ...]


@cache
def _target() -> llvm.Target:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.set_option("o2c", f"-bpf-stack-size={_STACK}")
    return llvm.Target.from_triple("bpfel")


def _target_machine() -> llvm.TargetMachine:
    """One for each compilation, since threads cannot share one."""
    return _target().create_target_machine(cpu=CPU, opt=_SPEED)


@cache
def data_layout() -> str:
    """LLVM's data layout of the target."""
    return str(_target_machine().target_data)


@dataclass(frozen=True, slots=True)
class CompiledText:
    """LLVM's object for a module's text."""

    text: str
    data: bytes


def compile_texts(
    texts: Sequence[str], largest: int, ahead: Task[CompiledText | None] | None = None
) -> dict[str, MachineCode]:
    """Compiles modules side by side. Every function of theirs is in a section named like itself with a dot before (the
    assembler wants them different).  ``largest`` is the length of the longest function's text; ``ahead`` gives what was
    compiled before, which may be the first text or another.

    Raises DiagnosticError: O2C0605 when LLVM refuses a text, which is a mistake in the compiler; O2C0610
    when a function is too large for BPF's jumps.
    """
    try:
        if largest > _LARGE:
            objects = [_compile_apart(text) for text in texts]
        else:
            objects = _compile_beside(texts, ahead)
    except RuntimeError as problem:
        first = str(problem).strip().splitlines()[0] if str(problem).strip() else "no reason given"
        raise DiagnosticError(
            error(
                "O2C0605",
                "LLVM refused the code that was generated for this policy",
                notes=(first,),
                help="this is a mistake in the compiler; please report it with the policy",
            )
        ) from problem
    return {name: code for data in objects for name, code in _read_object(data).items()}


def compile_ahead(text: str, largest: int) -> CompiledText | None:
    """What `compile_texts` would do with a text; None where it would raise, or do it in a process of its own."""
    try:
        return CompiledText(text, _compile(text)) if largest <= _LARGE else None
    except RuntimeError:
        return None


def _compile_beside(texts: Sequence[str], ahead: Task[CompiledText | None] | None) -> list[bytes]:
    """The objects of all texts: one is made in another process, if it was not ahead the first.  Raises RuntimeError."""
    _target()  # once for all
    other = 0 if ahead is None else 1
    task = begin(partial(_compile, texts[other])) if other < len(texts) else None
    made = {number: _compile(text) for number, text in enumerate(texts) if number > other}
    if task is not None:
        made[other] = task.result()
    known = ahead.result() if ahead is not None else None
    for number, text in enumerate(texts):
        if number not in made:
            made[number] = known.data if known is not None and known.text == text else _compile(text)
    return [made[number] for number in range(len(texts))]


def _compile(text: str) -> bytes:
    """The object that LLVM makes of the text.  Raises RuntimeError when it refuses the text."""
    machine = _target_machine()
    with llvm.create_context() as context, llvm.parse_assembly(text, context) as module:
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=_SPEED)
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
        data: bytes = machine.emit_object(module)
    return data


def _compile_apart(text: str) -> bytes:
    """The same in a process of its own, since LLVM ends its process when a jump is too far to encode."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            faulthandler.disable()  # no report of an end that is expected
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with os.fdopen(writer, "wb") as stream:
                stream.write(_compile(text))
            status = 0
        except RuntimeError:
            status = _REFUSED
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        data = stream.read()
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == _REFUSED:
        raise RuntimeError
    if status:
        raise DiagnosticError(
            error(
                "O2C0610",
                "a check, hook or function is too large: BPF's jumps reach 32,767 instructions",
                help="split the function, or make the tree smaller",
            )
        )
    return data


def _read_object(data: bytes) -> dict[str, MachineCode]:
    """Takes LLVM's object apart."""
    (offset,) = struct.unpack_from("<Q", data, 0x28)
    count, names_index = struct.unpack_from("<HH", data, 0x3C)
    headers = [_SECTION.unpack_from(data, offset + _SECTION.size * i) for i in range(count)]

    def content(index: int) -> bytes:
        return data[headers[index][4] : headers[index][4] + headers[index][5]]

    def string(table: bytes, at: int) -> str:
        return table[at : table.index(0, at)].decode()

    names = content(names_index)
    by_name = {string(names, header[0]): index for index, header in enumerate(headers)}
    symbol_index = next(i for i, header in enumerate(headers) if header[1] == _SHT_SYMTAB)
    strings = content(headers[symbol_index][6])
    symbols = [string(strings, fields[0]) for fields in _SYMBOL.iter_unpack(content(symbol_index))]
    relocations: dict[int, tuple[Relocation, ...]] = {}
    for index, header in enumerate(headers):
        if header[1] == _SHT_REL and not string(names, header[0]).startswith((".rel.BTF", ".rel.debug")):
            relocations[header[7]] = tuple(
                Relocation(place, symbols[info >> 32], RelocationType(info & 0xFFFFFFFF))
                for place, info in _RELOCATION.iter_unpack(content(index))
                if info & 0xFFFFFFFF in (1, 10)
            )
    lines = _read_lines(content(by_name[".BTF"]), content(by_name[".BTF.ext"])) if ".BTF" in by_name else {}
    return {
        name[1:]: MachineCode(content(index), relocations.get(index, ()), lines.get(name, ()))
        for name, index in by_name.items()
        if name[:3] in (".f.", ".c.", ".h.")
    }


def _read_lines(btf: bytes, ext: bytes) -> dict[str, tuple[tuple[int, int], ...]]:
    """Line numbers by section from LLVM's BTF.ext."""
    header_length, _, _, strings_offset = struct.unpack_from("<IIII", btf, 4)
    strings = btf[header_length + strings_offset :]
    ext_header, _, _, line_offset, line_length = struct.unpack_from("<IIIII", ext, 4)
    at = ext_header + line_offset
    end = at + line_length
    at += 4
    found: dict[str, tuple[tuple[int, int], ...]] = {}
    while at < end:
        name, count = struct.unpack_from("<II", ext, at)
        at += 8
        records = struct.iter_unpack("<IIII", ext[at : at + 16 * count])
        at += 16 * count
        section = strings[name : strings.index(0, name)].decode()
        found[section] = tuple((place, position >> 10) for place, _, _, position in records)
    return found
