# SPDX-License-Identifier: Apache-2.0
"""Which field of which struct an instruction writes, where the types of arguments and results tell.

A guess for whoever reads a report, never a fact to decide by: the kernel's code casts pointers and goes from members to
the structs around them.
"""

from __future__ import annotations

from collections.abc import Mapping

from o2cc.kernel.description import Description, Function, Site, ValueSource
from o2cc.kernel.fields import fields_at

_LOADS = 8  # pointers that are followed


class Pointees:
    """The structs that the values of one function point to."""

    def __init__(self, description: Description, function: Function) -> None:
        self._types = description.types
        self._prototype = description.types.prototype_by_name.get(function.name)
        self._sources: Mapping[int, ValueSource] = {
            value: source
            for site in function.sites
            for value, source in (
                (site.value, site.value_source),
                *((argument.value, argument.source) for argument in site.arguments if argument is not None),
            )
            if value is not None and source is not None
        }

    def written(self, site: Site) -> str | None:
        """``struct sock.sk_err``, the field that a store through a typed pointer writes; None where nothing tells."""
        operand = site.operand
        if site.value_source is None or operand is None or operand.index or operand.segment or site.rep:
            return None
        struct = self._struct(site.value_source, _LOADS)
        offset = site.value_offset + operand.displacement
        if struct is None or offset < 0:
            return None
        found = fields_at(self._types, struct, offset)
        name = struct.partition("#")[0]  # of several structs of one name the later ones are numbered
        return f"struct {name}.{found[0].path}" if found else None

    def _struct(self, source: ValueSource, loads: int) -> str | None:
        """The struct that a value points to."""
        match source.kind:
            case "argument":
                parameters = self._prototype.parameters if self._prototype is not None else ()
                known = source.number < min(len(parameters), 6)
                return parameters[source.number].type.pointee_struct if known else None
            case "call":
                called = self._types.prototype_by_name.get(source.callee or "")
                return called.returns.pointee_struct if called is not None else None
            case "load" if source.size == 8 and source.value is not None and loads:
                known_source = self._sources.get(source.value)
                outer = self._struct(known_source, loads - 1) if known_source is not None else None
                if outer is None or source.offset < 0:
                    return None
                for field in fields_at(self._types, outer, source.offset):
                    if field.offset == source.offset and field.size == 8:
                        return field.type.pointee_struct
                return None
            case _:
                return None
