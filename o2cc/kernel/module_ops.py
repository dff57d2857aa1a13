# SPDX-License-Identifier: Apache-2.0
"""The ops tables of a module file, without a description of its code: what a loader needs to know where calls
through another module's tables go."""

from __future__ import annotations

from o2cc.kernel import btf as kinds
from o2cc.kernel.btf import Btf, read_btf
from o2cc.kernel.collection import without_collection
from o2cc.kernel.description import OpsTable
from o2cc.kernel.elf import SHN_UNDEF, read_elf
from o2cc.kernel.layout import module_layout
from o2cc.kernel.ops import ops_tables
from o2cc.kernel.scan import module_objects


def module_tables(data: bytes, path: str, kernel: Btf) -> tuple[OpsTable, ...]:
    """The tables of a module whose unpacked bytes are ``data``; ``path`` is for messages only.

    Raises DiagnosticError (O2C0401 to O2C0405) for a file that is no module or whose BTF is broken.
    """
    with without_collection():
        elf = read_elf(data, path)
        layout = module_layout(elf)
        section = elf.section_by_name.get(".BTF")
        types = read_btf(elf.content(section), path, kernel) if section is not None else kernel
        mine = types.named(kinds.FUNC) if types is not kernel else {}
        own = {
            function.start: (
                function.name,
                types.type(mine[function.name]).reference if function.name in mine else None,
            )
            for function in layout.functions
        }
        imported: dict[str, int | None] = {}
        for symbol in elf.symbols:
            if symbol.section == SHN_UNDEF and symbol.name:
                found = types.find(symbol.name, kinds.FUNC)
                if found is not None:
                    imported[symbol.name] = types.type(found).reference
        return tuple(ops_tables(layout, module_objects(elf, types), types, own, imported))
