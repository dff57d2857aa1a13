# SPDX-License-Identifier: Apache-2.0
"""Objects in data sections that hold addresses of functions, and which struct they are.

BTF of a module names few variables, so the struct is mostly inferred: it is the only one whose size fits and
that has, at every place where the object holds a function, a pointer to a function of the same prototype.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from o2cc.kernel import btf as kinds
from o2cc.kernel.btf import Btf
from o2cc.kernel.description import OpsTable
from o2cc.kernel.layout import Layout, LayoutSection
from o2cc.kernel.patches import NOT_POINTERS_TO_DATA


@dataclass(frozen=True, slots=True)
class DataObject:
    """An object symbol of a data section."""

    name: str
    section: str
    start: int
    size: int
    type_id: int | None


class StructMatcher:
    """Finds structs by size and by the prototypes of the function pointers in them."""

    def __init__(self, btf: Btf) -> None:
        self.btf = btf
        self.chain: list[Btf] = []
        current: Btf | None = btf
        while current is not None:
            self.chain.append(current)
            current = current.base
        self.sizes: list[int] = sorted({size for part in self.chain for size in part.structs_by_size})
        self._candidates: dict[int, list[tuple[int, dict[int, tuple[str, int]]]]] = {}

    def function_pointers(self, id: int) -> dict[int, tuple[str, int]]:
        """(member path, FUNC_PROTO) of a struct's function pointers by byte offset."""
        # Kept with the type's own section: of the kernel's structs once for all modules.
        notes = self.btf.owner(id).notes
        found: dict[int, tuple[str, int]] | None = notes.get(("function pointers", id))
        if found is None:
            found = {}
            self._collect(id, "", 0, found, 0)
            notes["function pointers", id] = found
        return found

    def _collect(self, id: int, prefix: str, base: int, into: dict[int, tuple[str, int]], depth: int) -> None:
        btf = self.btf
        for name, type_id, word in btf.member_rows(id):
            inner = btf.strip(type_id)
            kind = btf.kind(inner)
            if kind == kinds.PTR:
                target = btf.strip(btf.reference(inner))
                if btf.kind(target) == kinds.FUNC_PROTO:
                    offset = base + btf.offset_bits(id, word) // 8
                    into.setdefault(offset, (f"{prefix}{btf.string(name)}", target))
            elif kind in (kinds.STRUCT, kinds.UNION) and depth < 4:
                text = btf.string(name)
                offset = base + btf.offset_bits(id, word) // 8
                self._collect(inner, f"{prefix}{text}." if text else prefix, offset, into, depth + 1)

    def shape(self, proto: int) -> tuple[object, ...]:
        """A prototype as far as two must agree: kinds and names of parameters and result."""
        notes = self.btf.owner(proto).notes
        found: tuple[object, ...] | None = notes.get(("shape", proto))
        if found is None:
            types = [id for _, id in self.btf.parameters(proto)] + [self.btf.reference(proto)]
            found = notes["shape", proto] = tuple(self._shape(id) for id in types)
        return found

    def candidates(self, size: int) -> list[tuple[int, dict[int, tuple[str, int]]]]:
        """The structs of ``size`` bytes that have function pointers, and these; the target's own first."""
        found = self._candidates.get(size)
        if found is None:
            structs = (id for part in self.chain for id in part.structs_by_size.get(size, ()))
            found = [(id, pointers) for id in structs if (pointers := self.function_pointers(id))]
            self._candidates[size] = found
        return found

    def _shape(self, id: int) -> tuple[int, str, int]:
        btf = self.btf
        id = btf.strip(id)
        kind = btf.kind(id)
        if kind == kinds.PTR:
            target = btf.strip(btf.type(id).reference)
            kind_there = btf.kind(target)
            if kind_there in (kinds.STRUCT, kinds.UNION, kinds.FWD):
                return kinds.PTR, btf.type(target).name, 0
            return kinds.PTR, "", 0
        if kind in (kinds.STRUCT, kinds.UNION):
            return kind, btf.type(id).name, 0
        return 0, "", btf.size(id)

    def match(self, size: int, slots: Mapping[int, int]) -> int | None:
        """The only struct of ``size`` bytes with function pointers of these prototypes at these offsets, at least one.

        Copies of one struct under one name (of several compilations) count as one.
        """
        found: list[int] = []
        for id, pointers in self.candidates(size):
            if slots.keys() <= pointers.keys() and all(
                self.shape(pointers[offset][1]) == self.shape(proto) for offset, proto in slots.items()
            ):
                found.append(id)
        names = {self.btf.type(id).name for id in found}
        return found[0] if len(names) == 1 and "" not in names else None

    def match_within(self, size: int, slack: int, slots: Mapping[int, int]) -> int | None:
        """As `match`, for a struct of at most ``size`` and more than ``size - slack`` bytes."""
        low = max(size - slack, max(slots, default=0))
        sizes = [other for other in self.sizes if low < other <= size]
        found = {id for other in sizes if (id := self.match(other, slots)) is not None}
        names = {self.btf.type(id).name for id in found}
        return min(found) if len(names) == 1 else None


def ops_tables(
    layout: Layout,
    objects: Iterable[DataObject],
    btf: Btf | None,
    own: Mapping[int, tuple[str, int | None]],
    imported: Mapping[str, int | None],
    slack: int = 0,
) -> list[OpsTable]:
    """The tables of a target. ``own`` gives name and FUNC_PROTO of a function by its start, ``imported`` FUNC_PROTO
    by name for imports that are functions. ``slack``: an object may be that much larger than its struct, where sizes
    are only distances between symbols."""
    matcher: StructMatcher | None = None
    result: list[OpsTable] = []
    addresses = layout.link_addresses
    sections = {section.name: section for section in layout.sections}
    for item in objects:
        # One-pointer objects are no tables: addresses kept for the linker, single callbacks.
        if item.section in NOT_POINTERS_TO_DATA or item.size <= 8:
            continue
        slots: dict[int, tuple[str, int | None]] = {}
        position = bisect_left(addresses, item.start)
        while position < len(addresses) and addresses[position] < item.start + item.size:
            link = layout.links[addresses[position]]
            held: tuple[str, int | None] | None = None
            if link.size == 8 and not link.relative:
                if link.address is not None:
                    held = own.get(link.address + link.addend)
                elif link.symbol is not None and link.symbol in imported and link.addend == 0:
                    held = (link.symbol, imported[link.symbol])
            if held is not None:
                slots[addresses[position] - item.start] = held
            position += 1
        if not slots:
            continue
        if matcher is None and btf is not None:
            matcher = StructMatcher(btf)
        result.append(_table(item, slots, matcher, sections[item.section], slack))
    return result


def _table(
    item: DataObject,
    slots: Mapping[int, tuple[str, int | None]],
    matcher: StructMatcher | None,
    section: LayoutSection,
    slack: int,
) -> OpsTable:
    struct: int | None = None
    inferred = False
    repeat = 0
    if matcher is not None:
        if item.type_id is not None:
            struct = matcher.btf.strip(item.type_id)
            struct = struct if matcher.btf.kind(struct) == kinds.STRUCT else None
        known = {offset: proto for offset, (_, proto) in slots.items() if proto is not None}
        if struct is None and len(known) == len(slots):
            struct = matcher.match(item.size, known)
            if struct is None and slack:
                struct = matcher.match_within(item.size, slack, known)
            if struct is None and not slack:
                struct, repeat = _array(item.size, known, matcher)
            inferred = struct is not None
    named: list[tuple[str, str]] = []
    for offset, (name, _) in sorted(slots.items()):
        path = f"+{offset:#x}"
        if struct is not None and matcher is not None:
            pointers = matcher.function_pointers(struct)
            within = offset % repeat if repeat else offset
            if within in pointers:
                path = pointers[within][0] if not repeat else f"[{offset // repeat}].{pointers[within][0]}"
        named.append((path, name))
    text = matcher.btf.type(struct).name if struct is not None and matcher is not None else None
    return OpsTable(
        item.name, item.section, item.start - section.start, text, tuple(named), inferred, section.writable
    )


def _array(size: int, slots: Mapping[int, int], matcher: StructMatcher) -> tuple[int | None, int]:
    """An array of equal structs: the smallest element size that fits, if exactly one struct does."""
    for element in matcher.sizes:
        if element < 16 or element * 2 > size or size % element:
            continue
        wanted: dict[int, int] = {}
        for offset, proto in slots.items():
            before = wanted.setdefault(offset % element, proto)
            if matcher.shape(before) != matcher.shape(proto):
                break
        else:
            found = matcher.match(element, wanted)
            if found is not None:
                return found, element
    return None, 0
