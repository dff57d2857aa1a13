# SPDX-License-Identifier: Apache-2.0
"""What the checker asks of a description: own functions, direct callees, functions whose address is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from o2cc.kernel.description import Argument, Description, Function, Site, StaticAddress, member_path
from o2cc.kernel.type_table import Prototype

_CALL_KINDS = ("call", "tail_call")


def is_plumbing(name: str) -> bool:
    """Whether a callee belongs to the machine code, not to the program: thunks, the ftrace entry."""
    return name.startswith(("__x86_", "__fentry__", "__pfx_")) or name in ("mcount", "ftrace_stub")


@dataclass(frozen=True)
class TargetCode:
    """A view of a description (None: of nothing), of all of its code or of the functions ``members`` only."""

    description: Description | None
    members: frozenset[str] | None = None

    @cached_property
    def functions(self) -> Mapping[str, Function]:
        """Functions of the target that can be named in a policy, `.cold` parts left out."""
        if self.description is None:
            return {}
        return {
            name: function
            for name, function in self.description.function_by_name.items()
            if function.parent is None and (self.members is None or name in self.members)
        }

    @cached_property
    def callees(self) -> Mapping[str, tuple[str, ...]]:
        """Direct callees outside the target with their callers (sorted); tail calls count."""
        found: dict[str, set[str]] = {}
        if self.description is None:
            return {}
        parts = self.description.function_by_name
        for function in self._parts():
            for site in function.sites:
                if site.kind not in _CALL_KINDS or site.target is None or is_plumbing(site.target):
                    continue
                known = parts.get(site.target)
                if known is not None and (known.parent or known.name) in self.functions:
                    continue
                found.setdefault(site.target, set()).add(function.parent or function.name)
        return {name: tuple(sorted(callers)) for name, callers in sorted(found.items())}

    @property
    def is_module(self) -> bool:
        """Whether the target is a module, whose functions the kernel knows only by address or export."""
        return self.description is not None and self.description.target.kind == "module"

    @cached_property
    def address_taken(self) -> tuple[str, ...]:
        """Own functions whose address is taken, sorted."""
        return tuple(sorted(name for name, function in self.functions.items() if function.address_taken))

    @cached_property
    def slots(self) -> Mapping[str, tuple[tuple[str, str, str], ...]]:
        """Where own functions stand in tables, by struct: (member path, table symbol, function).

        Members of arrays are those of their elements; a member of an embedded struct also counts as one of that
        struct's own type.
        """
        found: dict[str, list[tuple[str, str, str]]] = {}
        if self.description is not None:
            for table in self.description.ops_tables:
                if table.type is None:
                    continue
                for place, function in table.slots:
                    if function not in self.functions:
                        continue
                    member = member_path(place)
                    for struct, path in self._levels(table.type, member):
                        found.setdefault(struct, []).append((path, table.symbol, function))
        return {struct: tuple(slots) for struct, slots in found.items()}

    def _levels(self, struct: str, member: str) -> Iterator[tuple[str, str]]:
        """The struct with the path in it, then the embedded ones that the path passes through."""
        assert self.description is not None
        yield struct, member
        parts = member.split(".")
        for count in range(1, len(parts)):
            place = self.description.types.find_field(struct, ".".join(parts[:count]))
            if place is not None and place.type.kind == "struct" and place.type.name is not None:
                yield place.type.name, ".".join(parts[count:])

    def prototype(self, function: str) -> Prototype | None:
        """The prototype of an own or a kernel function, where type information has one."""
        own = self.functions.get(function)
        if own is not None and own.prototype is not None:
            return own.prototype
        if self.description is None:
            return None
        return self.description.types.prototype_by_name.get(function)

    def calls_of(self, callee: str) -> Iterator[tuple[Function, Site]]:
        """All direct calls of a function outside."""
        for function in self._parts():
            for site in function.sites:
                if site.kind in _CALL_KINDS and site.target == callee:
                    yield function, site

    def _parts(self) -> Iterator[Function]:
        """The functions of the target with their `.cold` parts."""
        for function in self.description.functions if self.description is not None else ():
            if (function.parent or function.name) in self.functions:
                yield function

    def function_at(self, address: StaticAddress) -> str | None:
        """The own function that begins at a static address."""
        if self.description is None:
            return None
        if address.section is not None:
            return self._starts.get((address.section, address.offset))
        return address.symbol if address.symbol in self.functions and address.offset == 0 else None

    @cached_property
    def _starts(self) -> Mapping[tuple[str, int], str]:
        return {(function.section, function.offset): name for name, function in self.functions.items()}

    def function_argument(self, site: Site, index: int) -> str | None:
        """The own function whose address a call passes as argument ``index``, where that is plain to see."""
        if index >= len(site.arguments):
            return None
        argument: Argument | None = site.arguments[index]
        if argument is None or argument.source.kind != "static" or argument.source.address is None:
            return None
        address = argument.source.address
        return self.function_at(
            StaticAddress(address.section, address.symbol, address.offset + argument.offset)
        )
