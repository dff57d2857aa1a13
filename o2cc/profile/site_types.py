# SPDX-License-Identifier: Apache-2.0
"""What each allocation site of a kernel allocates, found offline: by debug information and by the flow of the result.

`site_types` makes a table of one kernel or module, `SiteTable` looks sites up in it and chooses by the object's size.
A site is `FUNCTION+0xOFFSET` of the return address of the allocating call, with `MODULE:` in front for modules; the
second of several functions of one name is `FUNCTION#1`.

Evidence, the strongest first:

    debug    a variable of the source, by DWARF, holds the result in the register in which the code has it
    flow     the result is passed as an argument, returned, or stored into a field, whose type BTF knows

Each in two ranks: what holds exactly the result, and what holds it or another value, after a join of paths.
"""

from __future__ import annotations

import json
import lzma
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from o2cc.profile.allocations import Allocation, Code, CodeUnit, Use
from o2cc.profile.candidates import BtfTypes, Choice, DwarfTypes, TypeFacts, choose
from o2cc.profile.dwarf import DebugInfo, FunctionInfo, Type, Variable
from o2cc.resources import resource_directory

ARRAY_ALLOCATORS = frozenset(
    {
        "kmalloc_array", "kcalloc", "kmalloc_array_node", "kcalloc_node", "krealloc_array", "kvmalloc_array", "kvcalloc",
        "devm_kmalloc_array", "devm_kcalloc", "kvmalloc_array_node", "kvcalloc_node",
    }
)  # fmt: skip
"""Inlined functions that multiply a count by an element's size (include/linux/slab.h, 6.1 and 6.12)."""

USER_COPIES: Mapping[str, int] = {
    # lib/usercopy.c, lib/iov_iter.c, lib/strncpy_from_user.c, arch/x86/lib/copy_user_64.S (6.1 and 6.12)
    "_copy_from_user": 0,
    "_copy_from_iter": 0,
    "_copy_from_iter_full": 0,
    "copy_from_user_nofault": 0,
    "strncpy_from_user": 0,
    "simple_write_to_buffer": 0,
    "copy_user_generic_unrolled": 0,
    "copy_user_generic_string": 0,
    "copy_user_enhanced_fast_string": 0,
    "rep_movs_alternative": 0,
}
"""Functions that copy user memory, and the argument that says where to."""

PAYLOAD_CALLEES = frozenset({"memdup_user", "memdup_user_nul", "strndup_user", "kmalloc_reserve"})
"""Allocators of copies of user memory (mm/util.c) and of packet data (net/core/skbuff.c)."""

STRING_CALLEES = frozenset({"kstrdup", "kstrndup", "kmemdup_nul", "kvasprintf"})

FILE_NAME = "allocations.json.xz"

GENERIC_NAMES = frozenset({"init_module", "cleanup_module"})
"""Second names of a module's own functions."""

_MAX_CHAIN = 6


@dataclass(frozen=True)
class Site:
    """What is known of one site.  ``asked``: a constant size, or that of the cache's objects; ``payload``: the function that says that it is payload;
    four tuples of types, each pair in order of rank."""

    callee: str
    asked: int | None
    array: bool
    payload: str
    debug: tuple[TypeFacts, ...]
    debug_joined: tuple[TypeFacts, ...]
    flow: tuple[TypeFacts, ...]
    flow_joined: tuple[TypeFacts, ...]

    def choose(self, size: int, slack: int) -> tuple[Choice, str]:
        """The type of an object of that size from this site, and the evidence."""
        debug = _ranked(self.debug, self.debug_joined, size, slack, self.array)
        flow = _ranked(self.flow, self.flow_joined, size, slack, self.array)
        if debug.name and flow.name and debug.name != flow.name:
            everything = (*self.debug, *self.debug_joined, *self.flow, *self.flow_joined)
            together = choose(everything, size, slack, array=self.array)
            if together.name is None:
                return Choice(None, tuple(sorted({debug.name, flow.name}))), "conflict"
            return together, "debug" if together.name == debug.name else "flow"
        if debug.name:
            return debug, "debug"
        if flow.name:
            return flow, "flow"
        if self.callee in STRING_CALLEES:
            return Choice("char[]"), "flow"
        conflict = debug.conflict or flow.conflict
        return Choice(None, conflict), "conflict" if conflict else "site"


def _ranked(
    certain: Sequence[TypeFacts], joined: Sequence[TypeFacts], size: int, slack: int, array: bool
) -> Choice:
    first = choose(certain, size, slack, array=array)
    if first.name or first.conflict or not joined:
        return first
    return choose((*certain, *joined), size, slack, array=array)


def site_types(code: Code, debug: DebugInfo | None) -> dict[str, Site]:
    """The sites of a kernel or module by `FUNCTION+0xOFFSET`.  Raises DwarfError."""
    names = SiteNames(code.names, numbered=code.layout.kernel_symbols is not None)
    flow = _Flow(code)
    variables = _functions_of(code, debug) if debug is not None else {}
    found: dict[str, Site] = {}
    for unit in code.units:
        for allocation in unit.allocations:
            key = names.name(allocation.address)
            if key is None:
                continue
            functions = variables.get(allocation.address, ())
            payload = next(
                (
                    use.callee
                    for use in allocation.uses
                    if use.kind == "argument" and use.certain and USER_COPIES.get(use.callee) == use.index
                ),
                allocation.callee if allocation.callee in PAYLOAD_CALLEES else "",
            )
            inlined = {
                call.name.removesuffix("_noprof")
                for function in functions
                for call in function.inlined
                if any(start <= allocation.address - 1 < end for start, end in call.ranges)
            }
            debug_types = (
                _Debug(debug).candidates(allocation, functions, unit) if debug is not None else ((), ())
            )
            certain, joined = flow.candidates(allocation, unit)
            found[key] = Site(
                allocation.callee,
                allocation.asked,
                # A copy of something whole that is several times a struct is an array of it.
                bool(inlined & ARRAY_ALLOCATORS) or allocation.callee == "kmemdup",
                payload,
                *debug_types,
                certain,
                joined,
            )
    return found


class SiteNames:
    """`FUNCTION+0xOFFSET` of addresses."""

    def __init__(self, symbols: Iterable[tuple[int, str]], *, numbered: bool = True) -> None:
        """``symbols`` are (start, name) of functions; of several at one address the first in order of names counts.

        Without ``numbered``, functions that share a name have none: what order they are in is not known.
        """
        names: dict[int, str] = {}
        for start, name in sorted(symbols, key=lambda item: (item[0], item[1] in GENERIC_NAMES, item[1])):
            names.setdefault(start, name)
        self._starts = sorted(names)
        self._names: list[str | None] = []
        counts = Counter(names.values())
        numbers: Counter[str] = Counter()
        for start in self._starts:
            name = names[start]
            number = numbers[name]
            numbers[name] += 1
            if counts[name] > 1 and not numbered:
                self._names.append(None)
            else:
                self._names.append(f"{name}#{number}" if number else name)

    def name(self, return_address: int) -> str | None:
        """The name of a site; None below every function and in one that has no name."""
        index = bisect_right(self._starts, return_address - 1) - 1
        if index < 0 or not self._starts[index] or self._names[index] is None:
            return None
        return f"{self._names[index]}+{return_address - self._starts[index]:#x}"


def _functions_of(code: Code, debug: DebugInfo) -> Mapping[int, tuple[FunctionInfo, ...]]:
    """The functions that DWARF knows around each allocation, by its return address."""
    addresses = sorted(allocation.address - 1 for unit in code.units for allocation in unit.allocations)
    found: dict[int, list[FunctionInfo]] = {}
    for unit, inside in debug.units_by_address(addresses).items():
        for function in debug.functions(unit, inside):
            for start, end in function.ranges:
                for address in inside[bisect_left(inside, start) : bisect_left(inside, end)]:
                    found.setdefault(address + 1, []).append(function)
    return {address: tuple(functions) for address, functions in found.items()}


class _Debug:
    """Candidates by variables."""

    def __init__(self, info: DebugInfo) -> None:
        self._types = DwarfTypes(info)

    def candidates(
        self, allocation: Allocation, functions: Sequence[FunctionInfo], unit: CodeUnit
    ) -> tuple[tuple[TypeFacts, ...], tuple[TypeFacts, ...]]:
        certain: dict[TypeFacts, None] = {}
        joined: dict[TypeFacts, None] = {}
        points = allocation.points
        addresses = [point.address for point in points]
        for function in functions:
            for variable in function.variables:
                rank = _holds(variable, points, addresses)
                if rank:
                    facts = self._types.facts(variable.pointee)
                    if facts is not None:
                        (certain if rank == 2 else joined)[facts] = None
            for call in function.inlined:
                if call.result is not None and any(
                    start <= allocation.address - 1 < end for start, end in call.ranges
                ):
                    # A function around the allocation, such as one that allocates nodes of one type.
                    facts = self._types.facts(call.result)
                    if facts is not None:
                        certain[facts] = None
            for use in allocation.uses:
                pointee = self._stored(use, function.variables)
                if use.kind == "return":
                    pointee = function.result
                facts = self._types.facts(pointee) if pointee is not None else None
                if facts is not None:
                    (certain if use.certain else joined)[facts] = None
        return tuple(certain), tuple(item for item in joined if item not in certain)

    def _stored(self, use: Use, variables: Sequence[Variable]) -> Type | None:
        """What the field that a result is stored into points to, where a variable holds the struct's address."""
        if use.kind != "store":
            return None
        found: dict[tuple[str, str], Type] = {}
        for variable in variables:
            if variable.pointee.kind not in ("struct", "union", "pointer"):
                continue
            for place in variable.places:
                if place.register == use.index and place.start <= use.address < place.end:
                    target = self._types.pointer_at(variable.pointee, use.displacement)
                    if target is not None:
                        found[target.kind, target.name] = target
        # Where the compiler joined several statements, variables of different types seem to be in one register.
        return next(iter(found.values())) if len(found) == 1 else None


def _holds(variable: Variable, points: Sequence[Any], addresses: Sequence[int]) -> int:
    """2: the variable has the result for certain, 1: perhaps, 0: never."""
    best = 0
    for place in variable.places:
        for point in points[bisect_left(addresses, place.start) : bisect_left(addresses, place.end)]:
            if place.register in point.certain:
                return 2
            if place.register in point.possible:
                best = 1
    return best


class _Flow:
    """Candidates by BTF."""

    def __init__(self, code: Code) -> None:
        self._types = BtfTypes(code.btf, code.own_btf)

    def candidates(
        self, allocation: Allocation, unit: CodeUnit
    ) -> tuple[tuple[TypeFacts, ...], tuple[TypeFacts, ...]]:
        certain: dict[TypeFacts, None] = {}
        joined: dict[TypeFacts, None] = {}
        for use in allocation.uses:
            id = self._pointer(use, unit)
            target = self._types.pointee_id(id) if id is not None else None
            facts = self._types.facts(target) if target is not None else None
            if facts is not None:
                (certain if use.certain else joined)[facts] = None
        return tuple(certain), tuple(item for item in joined if item not in certain)

    def _pointer(self, use: Use, unit: CodeUnit) -> int | None:
        """The type of the pointer that the result becomes."""
        types = self._types
        if use.kind == "argument":
            prototype = types.prototype(use.callee)
            if prototype is None or use.index >= len(prototype[0]):
                return None
            return prototype[0][use.index]
        if use.kind == "return":
            prototype = types.prototype(unit.name)
            return prototype[1] if prototype is not None else None
        value, offset = use.base
        struct = self._behind(value, unit, 0)
        return types.field(struct, offset) if struct is not None else None

    def _behind(self, value: int, unit: CodeUnit, depth: int) -> int | None:
        """The type that a value points to: an argument, the result of a typed function, or a field of such."""
        if depth > _MAX_CHAIN:
            return None
        definition: Any = unit.definitions[value]
        types = self._types
        if definition[0] == "argument":
            prototype = types.prototype(unit.name)
            if prototype is None or definition[1] >= len(prototype[0]):
                return None
            return types.pointee_id(prototype[0][definition[1]])
        if definition[0] == "load" and definition[3] is not None:
            struct = self._behind(definition[3], unit, depth + 1)
            field = types.field(struct, definition[4]) if struct is not None else None
            return types.pointee_id(field) if field is not None else None
        return None


@dataclass(frozen=True)
class SiteTable:
    """The sites of one kernel build and its modules: by `FUNCTION+0xOFFSET`, modules' with `MODULE:` in front."""

    release: str
    build_id: str
    sites: Mapping[str, Site]

    def to_bytes(self) -> bytes:
        """A compressed file."""
        types: dict[TypeFacts, int] = {}

        def numbers(items: Iterable[TypeFacts]) -> list[int]:
            return [types.setdefault(item, len(types)) for item in items]

        rows = {
            name: [
                site.callee,
                site.asked,
                int(site.array),
                site.payload,
                *(numbers(group) for group in (site.debug, site.debug_joined, site.flow, site.flow_joined)),
            ]
            for name, site in sorted(self.sites.items())
        }
        listed = [[item.name, item.kind, item.size, int(item.flexible), list(item.first)] for item in types]
        content = {"release": self.release, "build_id": self.build_id, "types": listed, "sites": rows}
        return lzma.compress(json.dumps(content, separators=(",", ":")).encode(), preset=9)

    @staticmethod
    def from_bytes(data: bytes) -> SiteTable:
        """The table of a file.  Raises ValueError for one that is broken."""
        try:
            content = json.loads(lzma.decompress(data))
            types = [
                TypeFacts(name, kind, size, bool(flexible), tuple(first))
                for name, kind, size, flexible, first in content["types"]
            ]
            sites = {
                name: Site(
                    row[0],
                    row[1],
                    bool(row[2]),
                    row[3],
                    *(tuple(types[number] for number in group) for group in row[4:8]),
                )
                for name, row in content["sites"].items()
            }
            return SiteTable(content["release"], content["build_id"], sites)
        except (lzma.LZMAError, KeyError, TypeError, IndexError, ValueError) as problem:
            raise ValueError(f"not a table of allocation sites: {problem}") from None


def bundled_sites(release: str, build_id: str | None = None) -> SiteTable | None:
    """The table of exactly this kernel build that travels with the package, if there is one; without ``build_id`` that
    of the release."""
    path = resource_directory("descriptions") / release / FILE_NAME
    try:
        table = SiteTable.from_bytes(path.read_bytes())
    except (OSError, ValueError):
        return None
    return table if build_id in (None, table.build_id) else None


def with_module(module: str, sites: Mapping[str, Site]) -> Iterator[tuple[str, Site]]:
    """Sites of a module by the names that a table has them by."""
    for name, site in sites.items():
        yield f"{module}:{name}", site
