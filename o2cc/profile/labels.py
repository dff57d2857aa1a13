# SPDX-License-Identifier: Apache-2.0
"""What type a sampled object has, and how that is known.

The first of these that applies gives (label, evidence):

    payload   its cache or its allocation site is for what users send or ask for
    cache     an unmerged cache of its own, whose struct is known or has the cache's name
    debug     a variable of the source holds the result, and the object has the size of what it points to
    flow      so does an argument that it becomes, a field, or what its function returns (`o2cc.profile.site_types`)
    result    the allocating function returns `struct T *`, and the object has the size of T
    table     the allocating function is in `ALLOCATORS`, and the object has the size of its struct
    conflict  several types fit equally well: no label but the site
    site      else: the allocating function and the object's size

A size check is part of every rule that goes by a function: many functions allocate more than what they return.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from o2cc.diagnostics import DiagnosticError
from o2cc.kernel import btf as kinds
from o2cc.kernel.btf import Btf
from o2cc.lower.caches import CACHE_STRUCTS
from o2cc.profile.samples import Sample
from o2cc.profile.site_types import Site, SiteNames, SiteTable

PAYLOAD = "payload"

MERGE_SLACK = 7
"""Bytes by which a cache's objects may be larger than those of one that shares it (mm/slab_common.c find_mergeable,
6.1 and 6.12, without the alignment to cache lines)."""

PAYLOAD_CACHES = frozenset({"names_cache", "skbuff_small_head"})
"""fs/namei.c (paths from user space); net/core/skbuff.c (small packet heads, 6.12)."""

PAYLOAD_FUNCTIONS = frozenset(
    {
        # packet data: net/core/skbuff.c (6.1, 6.12); what `__alloc_skb` takes from a cache is a head
        "__alloc_skb",
        "kmalloc_reserve",
        "pskb_expand_head",
        # message queues: ipc/msgutil.c; user keys: security/keys/user_defined.c
        "load_msg",
        "user_preparse",
        # copies of user memory: mm/util.c; paths: fs/namei.c
        "memdup_user",
        "vmemdup_user",
        "memdup_user_nul",
        # memdup_sockptr, inlined into a protocol's setsockopt, asks for its caller as the site: include/linux/sockptr.h
        "__sys_setsockopt",
        "do_sock_setsockopt",
        "strndup_user",
        "getname_flags",
        # extended attributes, what is written to or read from kernfs and seq files
        "simple_xattr_alloc",
        "setxattr_copy",
        "kernfs_fop_write_iter",
        "seq_read_iter",
        "single_open_size",
    }
)

ALLOCATORS: Mapping[str, str] = {
    # net/sctp: functions that do not return what they allocate (6.1, 6.12)
    "sctp_get_port_local": "sctp_bind_bucket",
    "sctp_add_bind_addr": "sctp_sockaddr_entry",
    "sctp_v4_copy_addrlist": "sctp_sockaddr_entry",
    "sctp_v6_copy_addrlist": "sctp_sockaddr_entry",
    "sctp_inetaddr_event": "sctp_sockaddr_entry",
    "sctp_inet6addr_event": "sctp_sockaddr_entry",
    "sctp_stream_init_ext": "sctp_stream_out_ext",
    "sctp_auth_set_key": "sctp_shared_key",  # a key's bytes come from here too: of that size where it has 24
    # fs
    "alloc_pipe_info": "pipe_inode_info",
    "single_open": "seq_operations",
}


@dataclass(frozen=True)
class Function:
    """Where an address is: a function, without the suffixes that the compiler gave, and its module ("": none)."""

    name: str
    module: str


class TextSymbols:
    """Functions by address."""

    def __init__(self, lines: Iterable[str]) -> None:
        """``lines`` are those of /proc/kallsyms."""
        found: list[tuple[int, str, str]] = []
        for line in lines:
            parts = line.split()
            if parts[1] in "tTwW":
                module = parts[3].strip("[]") if len(parts) > 3 else ""
                found.append((int(parts[0], 16), parts[2], module))
        found.sort()
        self._functions = found
        self._starts = [start for start, _, _ in found]
        self._names: dict[str, SiteNames] = {}

    def function(self, return_address: int) -> Function | None:
        """The function that a return address lies in; None below every function."""
        index = bisect_right(self._starts, return_address - 1) - 1
        if index < 0 or not self._starts[index]:
            return None
        _, name, module = self._functions[index]
        return Function(name.split(".")[0], module)

    def site(self, return_address: int) -> str | None:
        """The name that a table of sites has for a return address; None below every function."""
        function = self.function(return_address)
        if function is None:
            return None
        module = function.module
        if module not in self._names:
            symbols = ((start, name) for start, name, of in self._functions if of == module)
            self._names[module] = SiteNames(symbols, numbered=not module)
        name = self._names[module].name(return_address)
        return f"{module}:{name}" if module and name else name


class TypeSource(Protocol):
    """What is asked of types; ``module`` is empty for the kernel's."""

    def size(self, struct: str, module: str) -> int | None:
        """Bytes of a struct of that name."""

    def result(self, function: str, module: str) -> str | None:
        """The struct that a function's result points to."""


class Types:
    """What BTF says of functions' results and of sizes of structs; broken parts say nothing."""

    def __init__(self, kernel: Btf, module: Callable[[str], Btf | None]) -> None:
        """``module`` gives the BTF of a loaded module, None when it has none."""
        self._kernel = kernel
        self._module = module
        self._modules: dict[str, Btf] = {}

    def _of(self, module: str) -> Btf:
        if module and module not in self._modules:
            self._modules[module] = self._module(module) or self._kernel
        return self._modules[module] if module else self._kernel

    def size(self, struct: str, module: str) -> int | None:
        """Bytes of a struct."""
        btf = self._of(module)
        try:
            id = btf.find(struct, kinds.STRUCT)
            return None if id is None else btf.type(id).reference
        except DiagnosticError:
            return None

    def result(self, function: str, module: str) -> str | None:
        """T, when the function returns `struct T *`."""
        btf = self._of(module)
        try:
            id = btf.find(function, kinds.FUNC)
            if id is None:
                return None
            pointer = btf.strip(btf.type(btf.type(id).reference).reference)
            if not pointer or btf.kind(pointer) != kinds.PTR:
                return None
            target = btf.strip(btf.type(pointer).reference)
            if not target or btf.kind(target) != kinds.STRUCT:
                return None
            return btf.type(target).name or None
        except DiagnosticError:
            return None


@dataclass(frozen=True)
class Label:
    """A type, or the site that stands for it, and how it is known."""

    name: str
    evidence: str

    @property
    def is_type(self) -> bool:
        """Whether it names a struct or payload, not a mere site."""
        return self.evidence not in ("site", "conflict")


def _key(sample: Sample) -> tuple[int, str, int, int, bool]:
    """All that a label depends on."""
    return sample.site, sample.cache, sample.asked, sample.size, sample.references == 1


class Labeller:
    """Labels samples of one boot; sites are looked up once each."""

    def __init__(self, symbols: TextSymbols, types: TypeSource, sites: SiteTable | None = None) -> None:
        self._symbols = symbols
        self._types = types
        self._sites: Mapping[str, Site] = sites.sites if sites is not None else {}
        self._known: dict[tuple[int, str, int, int, bool], Label] = {}

    def label(self, sample: Sample) -> Label:
        """The label of a sample."""
        key = _key(sample)
        if key not in self._known:
            self._known[key] = self._find(sample)
        return self._known[key]

    def rows(self, samples: Sequence[Sample]) -> list[dict[str, str | int]]:
        """What labels depend on, with the label, and how many of the samples each row stands for."""
        counts = Counter(_key(sample) for sample in samples)
        first = {_key(sample): sample for sample in reversed(samples)}
        rows: list[dict[str, str | int]] = []
        for key, count in counts.items():
            sample = first[key]
            function = self._symbols.function(sample.site)
            label = self.label(sample)
            rows.append(
                {
                    "site": self._symbols.site(sample.site) or "",
                    "function": function.name if function else "unknown",
                    "module": function.module if function else "",
                    "cache": sample.cache,
                    "asked": sample.asked,
                    "size": sample.size,
                    "references": sample.references,
                    "samples": count,
                    "label": label.name,
                    "evidence": label.evidence,
                }
            )
        return rows

    def _find(self, sample: Sample) -> Label:
        function = self._symbols.function(sample.site)
        name, module = (function.name, function.module) if function else ("unknown", "")
        if sample.references == 1 and not sample.asked:
            if sample.cache in PAYLOAD_CACHES:
                return Label(PAYLOAD, "payload")
            struct = CACHE_STRUCTS.get(sample.cache)
            if struct is None and self._fits(sample.cache, module, sample):
                struct = sample.cache
            if struct is not None:
                return Label(struct, "cache")
        site = self._sites.get(self._symbols.site(sample.site) or "")
        if site is not None and site.payload:
            return Label(PAYLOAD, "payload")
        if name in PAYLOAD_FUNCTIONS and not (name == "__alloc_skb" and not sample.asked):
            return Label(PAYLOAD, "payload")
        if site is not None:
            # A cache that others share may have larger objects than it was created for (`find_mergeable`).
            known = sample.asked or site.asked
            slack = MERGE_SLACK if not known and sample.references > 1 else 0
            choice, evidence = site.choose(known or sample.size, slack)
            if choice.name is not None:
                return Label(choice.name, evidence)
            if choice.conflict:
                return Label(f"site:{name}/{sample.size}", "conflict")
        for evidence, candidate in (
            ("table", ALLOCATORS.get(name)),
            ("result", self._types.result(name, module)),
        ):
            if candidate is not None and self._fits(candidate, module, sample):
                return Label(candidate, evidence)
        return Label(f"site:{name}/{sample.size}", "site")

    def _fits(self, struct: str, module: str, sample: Sample) -> bool:
        """Whether an object has the size of a struct: exactly what kmalloc was asked for; in a cache, which may be
        merged with another of nearly the same size, up to a word more."""
        size = self._types.size(struct, module)
        if size is None:
            return False
        return sample.asked == size if sample.asked else size <= sample.size <= size + MERGE_SLACK


@dataclass(frozen=True)
class Share:
    """How much of a profile carries a type: sites and samples, of all."""

    typed_sites: int
    sites: int
    typed_samples: int
    samples: int


def share(samples: Sequence[Sample], labels: Sequence[Label]) -> Share:
    """The share of allocation sites and of samples whose label is a type."""
    typed = {sample.site for sample, label in zip(samples, labels, strict=True) if label.is_type}
    return Share(
        len(typed),
        len({sample.site for sample in samples}),
        sum(label.is_type for label in labels),
        len(samples),
    )
