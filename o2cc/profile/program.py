# SPDX-License-Identifier: Apache-2.0
"""The object that samples kernel objects (sampling.ir), compiled for one kernel by our own compiler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from o2cc.bpf.emit import emit_object
from o2cc.bpf.layout import Layout
from o2cc.compiler import library_sources
from o2cc.diagnostics import SourceFile
from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.ir.parser import parse_library
from o2cc.kernel.description import KernelFacts
from o2cc.lower.constants import kernel_constants, merged, slab_test
from o2cc.trees.features import LAYOUT_FIELDS
from o2cc.trees.lower import AREAS, resolve_areas

NAME = "o2c_profile"
COMPARTMENT = "compartment"
"""Target of the hook that is attached to functions of the compartment."""
WORDS = 32
"""8-byte words of an object that a record holds: 256 bytes."""

_UNUSED_BY_SAMPLING = {
    "const(CACHES)": 0,
    "const(SECTIONS)": 0,
}
"""The library's file address.ir has functions that sampling does not call; their constants still need a value."""


@dataclass(frozen=True)
class SamplingProgram:
    """The module and the object's bytes."""

    module: ir.Module
    data: bytes


def record_fields(module: ir.Module) -> tuple[str, ...]:
    """The words of a record, in order."""
    return next(map_.fields for map_ in module.maps if map_.name == "samples")


def make_program(kernel: KernelFacts, release: str, *, per_site: int) -> SamplingProgram:
    """Compile for a kernel.  ``per_site`` limits the records of each moment from one allocation site.

    Raises DiagnosticError (O2C0510) when the kernel's BTF lacks what is needed.
    """
    constants = merged(kernel_constants(kernel, release), _UNUSED_BY_SAMPLING, {"const(PER_SITE)": per_site})
    own = _text(Path(__file__).with_name("sampling.ir"))
    address = library_sources()["address"]
    parts = [parse_library(source, constants) for source in (own, address)]
    areas = ir.Table(AREAS, tuple((field, 8) for field in LAYOUT_FIELDS), (), 1, writable=True)
    module = ir.Module(
        name=NAME,
        identity=(("release", release), ("target", "vmlinux"), ("kind", "profile")),
        maps=tuple(map_ for part in parts for map_ in part.maps),
        tables=(*(table for part in parts for table in part.tables), areas),
        functions=(
            _is_slab(kernel, release),
            resolve_areas(),
            *(function for part in parts for function in part.functions),
        ),
        hooks=tuple(hook for part in parts for hook in part.hooks),
    )
    sources: Mapping[str, str] = {source.name: source.text for source in (own, address)}
    return SamplingProgram(module, emit_object(module, layout=Layout.SITE, sources=sources).data)


def _text(path: Path) -> SourceFile:
    return SourceFile(f"profile/{path.name}", path.read_text(encoding="utf-8"))


def _is_slab(kernel: KernelFacts, release: str) -> ir.Function:
    offset, size, mask, value = slab_test(kernel, release)
    code = Builder()
    word = code.read(size, code.add(ir.Value("head"), offset))
    bits = code.binary(ir.BinaryOperator.AND, word, mask)
    code.give_back(code.binary(ir.BinaryOperator.EQ, bits, value))
    return ir.Function("is_slab", ("head",), code.finish())
