# SPDX-License-Identifier: Apache-2.0
"""The private heap: which calls of the compartment's code go to it, and what the enforcement module must know of them.

These calls carry no program: o2c.ko redirects them (bpf_runtime/module/heap.c).  The sites of the gate itself stay, so that
what an allocator or a free asks of its arguments is asked first, and what the kernel's own allocator had to serve (large
requests, unusual flags) is tracked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from o2cc.diagnostics import Span
from o2cc.kernel.description import Description, Function, Site
from o2cc.lower.context import Lowering
from o2cc.lower.expressions import ARGUMENT_REGISTERS
from o2cc.policy import model


class HeapOperation(StrEnum):
    """What the enforcement module does in place of the called function."""

    ALLOC = "alloc"
    ALLOC_CACHE = "alloc_cache"
    FREE_CACHE = "free_cache"
    REALLOC = "realloc"
    DUPLICATE = "duplicate"
    KVALLOC = "kvalloc"
    PAGES = "pages"  # gives a struct page
    PAGES_ADDRESS = "pages_address"
    ZEROED_PAGE = "zeroed_page"
    BULK_ALLOC = "bulk_alloc"
    BULK_FREE = "bulk_free"


_SIZES = frozenset({"size", "new_size", "len"})
_ORDERS = frozenset({"order"})
_FLAGS = frozenset({"flags", "gfp", "gfpflags", "gfp_flags", "gfp_mask"})

# include/linux/slab.h and mm/util.c of 6.1 and 6.12, which adds `_noprof`.  What is not here keeps the kernel's allocator:
# functions that allocate inside (kstrdup, memdup_user, sock_kmalloc), vmalloc, per-CPU memory.
_FUNCTIONS: Mapping[str, HeapOperation] = {
    "__kmalloc": HeapOperation.ALLOC,
    "__kmalloc_node": HeapOperation.ALLOC,
    "__kmalloc_node_track_caller": HeapOperation.ALLOC,
    "kmalloc_trace": HeapOperation.ALLOC,
    "kmalloc_node_trace": HeapOperation.ALLOC,
    "__kmalloc_cache": HeapOperation.ALLOC,
    "__kmalloc_cache_node": HeapOperation.ALLOC,
    "kmalloc_large": HeapOperation.ALLOC,
    "kmalloc_large_node": HeapOperation.ALLOC,
    "__kmalloc_large": HeapOperation.ALLOC,
    "__kmalloc_large_node": HeapOperation.ALLOC,
    "kvmalloc_node": HeapOperation.KVALLOC,
    "__kvmalloc_node": HeapOperation.KVALLOC,
    "kmem_cache_alloc": HeapOperation.ALLOC_CACHE,
    "kmem_cache_alloc_lru": HeapOperation.ALLOC_CACHE,
    "kmem_cache_alloc_node": HeapOperation.ALLOC_CACHE,
    "kmem_cache_free": HeapOperation.FREE_CACHE,
    "krealloc": HeapOperation.REALLOC,
    "kmemdup": HeapOperation.DUPLICATE,
    "alloc_pages": HeapOperation.PAGES,
    "__alloc_pages": HeapOperation.PAGES,
    "__get_free_pages": HeapOperation.PAGES_ADDRESS,
    "get_free_pages": HeapOperation.PAGES_ADDRESS,
    "get_zeroed_page": HeapOperation.ZEROED_PAGE,
    "kmem_cache_alloc_bulk": HeapOperation.BULK_ALLOC,
    "kmem_cache_free_bulk": HeapOperation.BULK_FREE,
}
_FREES = frozenset({HeapOperation.FREE_CACHE, HeapOperation.BULK_FREE})
_OF_CACHE = frozenset({HeapOperation.ALLOC_CACHE, HeapOperation.BULK_ALLOC})
_OF_PAGES = frozenset({HeapOperation.PAGES, HeapOperation.PAGES_ADDRESS})
_GIVE_NO_ADDRESS = _FREES | {HeapOperation.PAGES, HeapOperation.BULK_ALLOC}


@dataclass(frozen=True)
class HeapCall:
    """A call or tail jump that the private heap serves.  ``size``: the register with the size, the cache (ALLOC_CACHE,
    BULK_ALLOC) or the order (PAGES, PAGES_ADDRESS); ``flags``: with the GFP flags.  None where there is none."""

    function: str
    offset: int
    tail: bool
    called: str
    operation: HeapOperation
    size: str | None
    flags: str | None


@dataclass(frozen=True)
class PrivateHeap:
    """What the loader asks the enforcement module for.  ``limit`` in bytes; the offsets are those of members of
    ``struct kmem_cache``."""

    limit: int
    ctor_offset: int
    flags_offset: int
    calls: tuple[HeapCall, ...]
    span: Span


def is_private(policy: model.CheckedPolicy) -> bool:
    """Whether the policy says `heap private`."""
    return policy.heap.kind is model.HeapKind.PRIVATE


def allocates(function: str) -> bool:
    """Whether this kernel function gives the address of memory that a private heap has served."""
    operation = _FUNCTIONS.get(function.removesuffix("_noprof"))
    return operation is not None and operation not in _GIVE_NO_ADDRESS


def library_part(policy: model.CheckedPolicy) -> str:
    """The part of the library that knows the owner shadow, or that there is none."""
    return "private_heap" if is_private(policy) else "tracked_heap"


def own_memory_is_plain(policy: model.CheckedPolicy) -> bool:
    """Whether no grant `behind` a pointer hangs on a word that can lie in the private heap, so that all of it may be
    written.  The named objects that such grants start from are the kernel's; only what is read through a further pointer
    can be anywhere."""

    def through_pointers(expression: model.Expr) -> bool:
        match expression:
            case model.LoadField() | model.AddressOfField():
                return _reads(expression.base)
            case model.UnaryExpr():
                return through_pointers(expression.operand)
            case model.BinaryExpr():
                return through_pointers(expression.left) or through_pointers(expression.right)
            case _:
                return False

    return not any(
        through_pointers(grant.start) or through_pointers(grant.length)
        for grant in policy.grants
        if isinstance(grant, model.BehindGrant) and grant.allows
    )


def _reads(expression: model.Expr) -> bool:
    match expression:
        case model.LoadField():
            return True
        case model.AddressOfField():
            return _reads(expression.base)
        case _:
            return False


def heap_calls(lowering: Lowering, function: Function) -> Iterator[HeapCall]:
    """The calls of ``function`` that go to the private heap: those that the policy allows."""
    own = lowering.description.function_by_name
    for site in function.sites:
        if site.kind not in ("call", "tail_call") or site.target is None or site.target in own:
            continue
        rule = lowering.policy.call(site.target, function.parent or function.name)
        if rule is None or not rule.allowed:
            continue
        found = _heap_call(lowering, function, site, site.target)
        if found is not None:
            yield found


def _heap_call(lowering: Lowering, function: Function, site: Site, target: str) -> HeapCall | None:
    """The redirection of a call of ``target``; None when it stays the kernel's."""
    operation = _FUNCTIONS.get(target.removesuffix("_noprof"))
    if operation is None or site.probe.offset != site.offset:
        return None
    size: str | None = None
    flags: str | None = None
    if operation not in _FREES:
        flags = _register(lowering.description, target, _FLAGS)
        if operation in _OF_CACHE:
            size = ARGUMENT_REGISTERS[0]
        elif operation is not HeapOperation.ZEROED_PAGE:
            size = _register(lowering.description, target, _ORDERS if operation in _OF_PAGES else _SIZES)
        if flags is None or (size is None and operation is not HeapOperation.ZEROED_PAGE):
            return None
    tail = site.kind == "tail_call"
    return HeapCall(function.name, site.offset, tail, target, operation, size, flags)


def _register(description: Description, target: str, names: frozenset[str]) -> str | None:
    """The register of the parameter with one of these names; None when the description does not tell."""
    prototype = description.types.prototype_by_name.get(target)
    if prototype is None:
        return None
    found = [i for i, parameter in enumerate(prototype.parameters) if parameter.name in names]
    return ARGUMENT_REGISTERS[found[0]] if len(found) == 1 and found[0] < len(ARGUMENT_REGISTERS) else None


def private_heap(lowering: Lowering) -> PrivateHeap | None:
    """The heap that a policy asks for, with the calls that it serves; None for a tracked one."""
    heap = lowering.policy.heap
    if not is_private(lowering.policy):
        return None
    functions = [function for function in lowering.description.functions if not function.initial]
    fields = lowering.description.kernel.fields
    constructor, flags = fields.get("kmem_cache.ctor"), fields.get("kmem_cache.flags")
    return PrivateHeap(
        heap.limit or 0,
        constructor.offset if constructor is not None else 0,
        flags.offset if flags is not None else 0,
        tuple(call for function in functions for call in heap_calls(lowering, function)),
        heap.span,
    )
