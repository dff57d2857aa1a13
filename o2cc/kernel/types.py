# SPDX-License-Identifier: Apache-2.0
"""From BTF to the description's type table, and the facts about the kernel that checks need.

The table holds every struct that a policy for the target can sensibly name: those that the target's functions and
its imports take or return pointers to, what these embed, and what pointers in them lead to (one level). Structs
without a name get one: that of the typedef that is their only name, else of the outer struct and the member.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from o2cc.diagnostics import DiagnosticError
from o2cc.kernel import btf as kinds
from o2cc.kernel.btf import Btf
from o2cc.kernel.description import Field, KernelFacts
from o2cc.kernel.kallsyms import KernelSymbols
from o2cc.kernel.type_table import Enum, Member, Parameter, Prototype, Struct, TypeReference, TypeTable

# Structs whose layout is recorded whole: what checks read, and what stdlib talks about for every target.
LAYOUTS = (
    "page", "folio", "slab", "kmem_cache", "kmem_cache_node", "kmem_cache_cpu", "kmem_cache_order_objects",
    "task_struct", "thread_info", "pcpu_hot", "pt_regs", "cred", "sk_buff", "skb_shared_info", "sk_buff_head", "sock",
    "sock_common", "socket", "net", "net_generic", "net_device", "module", "module_layout", "module_memory",
    "list_head", "hlist_node", "callback_head", "timer_list", "work_struct", "delayed_work", "hrtimer", "tasklet_struct",
    "wait_queue_entry", "mem_section", "proto_ops", "proto", "net_protocol", "file_operations",
    "genradix_node", "bucket_table", "rhashtable", "msghdr", "__kernel_sockaddr_storage",
)  # fmt: skip

# Enumerators that are recorded, with all others of their enums.
ENUMERATORS = ("PG_slab", "PG_head", "PGTY_slab", "_SLAB_RED_ZONE", "HI_SOFTIRQ")

# Enums whose values a struct keeps as plain numbers, so that nothing in BTF leads from one to the other.
ENUMS_OF_STRUCTS = {"iov_iter": "iter_type"}  # include/linux/uio.h

SYMBOLS = (
    "page_offset_base", "vmemmap_base", "vmalloc_base", "vmemmap_populate", "phys_base", "_text", "_stext", "_etext",
    "_sdata", "_edata", "__bss_start", "__bss_stop", "_end", "__start_rodata", "__end_rodata", "__per_cpu_start",
    "__per_cpu_end", "__per_cpu_offset", "pcpu_hot", "current_task", "__preempt_count", "hardirq_stack_ptr",
    "cpu_current_top_of_stack", "this_cpu_off", "init_task", "high_memory", "max_pfn", "mem_section",
    "kmalloc_caches", "slab_caches", "init_net", "modules", "pcpu_base_addr", "kfree", "kmem_cache_free",
    "module_alloc", "mod_tree", "vmap_area_root",
)  # fmt: skip

# Pairs of symbols whose distance is the size of the initial task's stack (``INIT_TASK_DATA`` in
# ``asm-generic/vmlinux.lds.h``): before 6.10 and since.
_STACK_BOUNDS = (("__start_init_stack", "__end_init_stack"), ("__start_init_task", "__end_init_task"))

PAGE_SHIFT = 12  # x86-64, ``asm/page_types.h``
STRUCT_LIMIT = 6000


@dataclass
class TypeBuilder:
    """Collects types from one BTF (a module's over the kernel's) and, for prototypes, from others."""

    btf: Btf
    names: dict[int, str] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)
    structs: dict[str, Struct] = field(default_factory=dict)
    enums: dict[str, Enum] = field(default_factory=dict)
    references: dict[int, TypeReference] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def reference(self, id: int, outer: str = "", depth: int = 0) -> TypeReference:
        """How a use of type ``id`` reads. ``outer`` names anonymous aggregates."""
        found = self.references.get(id)
        if found is None:
            found = self._reference(id, outer, depth)
            if found.name is not None or not outer:
                self.references[id] = found
        return found

    def _reference(self, id: int, outer: str, depth: int) -> TypeReference:
        btf = self.btf
        typedef: str | None = None
        const = False
        current = id
        for _ in range(kinds.DEPTH_LIMIT):
            if current == 0:
                return TypeReference("void", "void", const=const, typedef=typedef)
            item = btf.type(current)
            if item.kind == kinds.TYPEDEF:
                typedef = typedef or item.name
                outer = item.name
            elif item.kind == kinds.CONST:
                const = True
            elif item.kind not in kinds.MODIFIERS:
                break
            current = item.reference
        else:
            return TypeReference("unknown")
        if depth > kinds.DEPTH_LIMIT:
            return TypeReference("unknown")
        kind = item.kind
        if kind == kinds.PTR:
            element = self._pointee(item.reference, depth + 1)
            return TypeReference("pointer", None, 8, element, const=const, typedef=typedef)
        if kind == kinds.ARRAY:
            element_id, count = btf.array(current)
            element = self.reference(element_id, outer, depth + 1)
            return TypeReference(
                "array", None, element.size * count, element, count, const=const, typedef=typedef
            )
        if kind in (kinds.STRUCT, kinds.UNION):
            which: Literal["struct", "union"] = "struct" if kind == kinds.STRUCT else "union"
            name = self.name_of(current, outer)
            return TypeReference(which, name, item.reference, const=const, typedef=typedef)
        if kind == kinds.FWD:
            return TypeReference("union" if item.flag else "struct", item.name, const=const, typedef=typedef)
        if kind in (kinds.ENUM, kinds.ENUM64):
            return TypeReference("enum", item.name or None, item.reference, const=const, typedef=typedef)
        if kind == kinds.INT:
            signed, _, _ = btf.integer(current)
            return TypeReference(
                "int", item.name, item.reference, signed=signed, const=const, typedef=typedef
            )
        if kind == kinds.FLOAT:
            return TypeReference("float", item.name, item.reference, const=const, typedef=typedef)
        if kind in (kinds.FUNC_PROTO, kinds.FUNC):
            return TypeReference("function", typedef=typedef)
        return TypeReference("unknown", item.name or None, typedef=typedef)

    def _pointee(self, id: int, depth: int) -> TypeReference:
        """What a pointer leads to; pointers beyond it are not followed further than C types nest."""
        return self.reference(id, "", depth)

    def name_of(self, id: int, outer: str = "") -> str:
        """The name of a struct or union, made up for one that has none."""
        found = self.names.get(id)
        if found is None:
            name = self.btf.type(id).name or outer or "anonymous"
            owner = self.taken.get(name)
            if owner is not None and owner != id:
                number = 2
                while f"{name}#{number}" in self.taken:
                    number += 1
                name = f"{name}#{number}"
            self.taken[name] = id
            self.names[id] = found = name
        return found

    def prototype(self, name: str, proto: int) -> Prototype:
        """The prototype behind a FUNC_PROTO."""
        parameters = self.btf.parameters(proto)
        variadic = bool(parameters) and parameters[-1][1] == 0
        if variadic:
            parameters = parameters[:-1]
        return Prototype(
            name,
            tuple(Parameter(text, self.reference(id)) for text, id in parameters),
            self.reference(self.btf.type(proto).reference),
            variadic,
        )

    def function(self, name: str, own: bool = False) -> tuple[Prototype, int] | None:
        """The prototype of a function of this BTF and the id of its FUNC_PROTO; ``own``: not one of the base."""
        id = self.btf.named(kinds.FUNC).get(name) if own else self.btf.find(name, kinds.FUNC)
        if id is None:
            return None
        proto = self.btf.type(id).reference
        if self.btf.kind(proto) != kinds.FUNC_PROTO:
            return None
        return self.prototype(name, proto), proto

    def seeds_of_prototype(self, proto: int) -> list[int]:
        """The structs that a prototype's pointers lead to."""
        ids = [id for _, id in self.btf.parameters(proto)] + [self.btf.type(proto).reference]
        return [found for found in map(self.aggregate_behind, ids) if found is not None]

    def aggregate_behind(self, id: int) -> int | None:
        """The struct or union that a type is, or points to, or is an array of; None otherwise."""
        for _ in range(kinds.DEPTH_LIMIT):
            id = self.btf.strip(id)
            kind = self.btf.kind(id)
            if kind == kinds.PTR:
                id = self.btf.reference(id)
            elif kind == kinds.ARRAY:
                id = self.btf.array(id)[0]
            elif kind in (kinds.STRUCT, kinds.UNION):
                return id
            elif kind == kinds.FWD:
                item = self.btf.type(id)
                return self.btf.find(item.name, kinds.UNION if item.flag else kinds.STRUCT)
            else:
                return None
        return None

    def add_structs(self, seeds: Iterable[int]) -> None:
        """Add what the seeds embed, and one level of what these point to with what that embeds."""
        first = self._embedded(dict.fromkeys(seeds))
        second = self._embedded(dict.fromkeys(target for id in first for target in self._pointed(id)))
        # Names of named structs are given out before made-up ones, so that they keep theirs.
        everything = list(dict.fromkeys([*first, *second]))[:STRUCT_LIMIT]
        for id in everything:
            if self.btf.type(id).name:
                self.name_of(id)
        for id in everything:
            if self.btf.type(id).name:
                self.add_struct(id)

    def add_struct(self, id: int) -> None:
        """Add one struct or union, with the anonymous ones inside of it."""
        name = self.name_of(id)
        if name in self.structs:
            return
        item = self.btf.type(id)
        which: Literal["struct", "union"] = "struct" if item.kind == kinds.STRUCT else "union"
        members: list[Member] = []
        # Registered before the members, against endless recursion in broken BTF.
        self.structs[name] = Struct(name, which, item.reference, ())
        for index, member in enumerate(self.btf.members(id)):
            inner = self.reference(member.type, f"{name}.{member.name or index}")
            members.append(Member(member.name, member.offset_bits, inner, member.bitfield_size))
            self._add_unnamed(member.type)
        self.structs[name] = Struct(name, which, item.reference, tuple(members))
        if name in ENUMS_OF_STRUCTS:
            self._add_enum(self.btf.find(ENUMS_OF_STRUCTS[name], kinds.ENUM))

    def _add_enum(self, id: int | None) -> None:
        name = self.btf.type(id).name if id is not None else ""
        if id is not None and name and name not in self.enums:
            self.enums[name] = Enum(name, self.btf.enumerators(id))

    def _add_unnamed(self, id: int) -> None:
        """Add an aggregate that has no tag (named by its typedef or its place), and enums."""
        for _ in range(kinds.DEPTH_LIMIT):
            id = self.btf.strip(id)
            kind = self.btf.kind(id)
            if kind != kinds.ARRAY:
                break
            id = self.btf.array(id)[0]
        if kind in (kinds.STRUCT, kinds.UNION) and not self.btf.type(id).name and id in self.names:
            self.add_struct(id)
        elif kind in (kinds.ENUM, kinds.ENUM64):
            self._add_enum(id)

    def _embedded(self, seeds: dict[int, None]) -> dict[int, None]:
        """The seeds and all aggregates inside of them."""
        found: dict[int, None] = {}
        pending = list(seeds)
        pending.reverse()
        while pending:
            id = pending.pop()
            if id not in found:
                found[id] = None
                pending += self._inner(id)[0]
        return found

    def _pointed(self, id: int) -> tuple[int, ...]:
        return self._inner(id)[1]

    def _inner(self, id: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The aggregates that a struct or union embeds, and those that its pointers lead to."""
        btf = self.btf
        # Kept with the type's own section: of the kernel's structs once for all modules.
        notes = btf.owner(id).notes
        known: tuple[tuple[int, ...], tuple[int, ...]] | None = notes.get(("inner", id))
        if known is not None:
            return known
        embedded: list[int] = []
        pointed: list[int] = []
        # What a declaration of the kernel stands for may be in the module, and differ from module to module.
        own_end = btf.owner(id).end_id
        whole = True
        for _, type_id, _ in btf.member_rows(id):
            inner = btf.strip(type_id)
            kind = btf.kind(inner)
            if kind == kinds.PTR:
                target = self.aggregate_behind(inner)
                whole = whole and (target is None or target < own_end)
                if target is not None:
                    pointed.append(target)
                else:
                    whole = whole and not self._is_forward(inner)
                continue
            for _ in range(kinds.DEPTH_LIMIT):
                if kind != kinds.ARRAY:
                    break
                inner = btf.strip(btf.array(inner)[0])
                kind = btf.kind(inner)
            if kind in (kinds.STRUCT, kinds.UNION):
                embedded.append(inner)
        found = (tuple(embedded), tuple(pointed))
        if whole:
            notes["inner", id] = found
        return found

    def _is_forward(self, pointer: int) -> bool:
        """Whether a pointer leads to a struct that is only declared."""
        for _ in range(kinds.DEPTH_LIMIT):
            pointer = self.btf.strip(pointer)
            if self.btf.kind(pointer) != kinds.PTR:
                break
            pointer = self.btf.reference(pointer)
        return self.btf.kind(pointer) == kinds.FWD

    def table(self, prototypes: Mapping[str, Prototype]) -> TypeTable:
        """The finished table, everything in order of names."""
        return TypeTable(
            tuple(self.structs[name] for name in sorted(self.structs)),
            tuple(self.enums[name] for name in sorted(self.enums)),
            tuple(prototypes[name] for name in sorted(prototypes)),
        )


def find_prototypes(
    builder: TypeBuilder, names: Iterable[str], others: Sequence[Btf] = (), own: bool = False
) -> tuple[dict[str, Prototype], list[int]]:
    """Prototypes of the named functions, from the builder's BTF or else from ``others`` (of modules that the target
    depends on), and the struct types of the builder's BTF that they lead to.

    ``own``: functions of the target itself, which the kernel's BTF says nothing about: another function there may
    have the same name.
    """
    found: dict[str, Prototype] = {}
    seeds: list[int] = []
    for name in names:
        try:
            here = builder.function(name, own)
            if here is not None:
                found[name] = here[0]
                seeds += builder.seeds_of_prototype(here[1])
                continue
            for other in others:
                # Types of another module are read with its own numbering; only their names are kept.
                foreign = TypeBuilder(other)
                there = foreign.function(name)
                if there is not None:
                    found[name] = there[0]
                    for parameter in (*there[0].parameters, Parameter("", there[0].returns)):
                        struct = parameter.type.pointee_struct
                        id = builder.btf.find(struct, kinds.STRUCT) if struct else None
                        if id is not None:
                            seeds.append(id)
                    break
        except DiagnosticError as problem:
            builder.problems.append(
                f"the prototype of `{name}` cannot be read: {problem.diagnostics[0].message}"
            )
    return found, seeds


def kernel_facts(btf: Btf, symbols: KernelSymbols | None, build_id: str) -> KernelFacts:
    """Field places, sizes, enumerators and constants of the kernel. Raises DiagnosticError for broken BTF."""
    fields: dict[str, Field] = {}
    sizes: dict[str, int] = {}
    for name in LAYOUTS:
        id = btf.find(name, kinds.STRUCT)
        if id is None:
            continue
        sizes[name] = btf.type(id).reference
        _add_fields(btf, id, name, 0, fields, 0)
    enums: dict[str, int] = {}
    base = btf
    while base.base is not None:
        base = base.base
    for kind in (kinds.ENUM, kinds.ENUM64):
        for id in base.ids_by_kind.get(kind, ()):
            values = base.enumerators(id)
            if any(name in ENUMERATORS for name, _ in values):
                enums.update(values)
    constants = {"page_shift": PAGE_SHIFT, "page_size": 1 << PAGE_SHIFT}
    present: set[str] = set()
    if symbols is not None:
        present = {name for name in SYMBOLS if name in symbols.name_set}
        for low, high in _STACK_BOUNDS:
            start, end = symbols.address(low), symbols.address(high)
            if start is not None and end is not None and end > start:
                constants["thread_size"] = end - start
                break
    return KernelFacts(fields, sizes, enums, frozenset(present), constants, build_id)


def _add_fields(btf: Btf, id: int, prefix: str, base: int, into: dict[str, Field], depth: int) -> None:
    for member in btf.members(id):
        bits = base + member.offset_bits
        if not member.name:
            inner = btf.strip(member.type)
            if btf.kind(inner) in (kinds.STRUCT, kinds.UNION) and depth < kinds.DEPTH_LIMIT:
                _add_fields(btf, inner, prefix, bits, into, depth + 1)
            continue
        size = btf.size(member.type)
        if member.bitfield_size:
            size = (bits % 8 + member.bitfield_size + 7) // 8
        into.setdefault(
            f"{prefix}.{member.name}",
            Field(bits // 8, size, bits % 8 if member.bitfield_size else 0, member.bitfield_size),
        )
