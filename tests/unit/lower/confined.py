# SPDX-License-Identifier: Apache-2.0
"""Policies over the bundled description of sctp, lowered and run in a made-up kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from o2cc.compiler import library_sources, parse_policy
from o2cc.diagnostics import SourceFile
from o2cc.ir import nodes as ir
from o2cc.ir.interpreter import Outcome
from o2cc.kernel import store
from o2cc.kernel.description import Description
from o2cc.lower.lower import Lowered, lower
from o2cc.lower.rules import Types, number_types
from o2cc.policy.checker import check
from o2cc.policy.model import CheckedPolicy
from o2cc.simulation.policy_tests import run_tests
from o2cc.simulation.world import STACK_POINTER, World
from o2cc.trees.tree import IntegerTree
from tests.unit.standard_library import standard_library

RELEASE = "6.1.0-57-amd64"
ARGUMENTS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
SECOND = 1 << 30  # nanoseconds by which the rate limit counts

OWN, HELD, TYPED, LENT = 1, 2, 4, 16

TRANSITION, FINAL = 1, 2
STORE_DENIED, AUDITIONED, INDIRECT_DENIED, FORBIDDEN, REQUIREMENT, FOREIGN_FREE, ENTRY_REFUSED = range(1, 8)
UNCERTAIN, DISAGREES = 9, 10


@cache
def sctp() -> Description:
    """The bundled description."""
    (path,) = store.bundled("sctp", RELEASE)
    return store.load(path)


CALLS = "call imports except std.linux.dangerous"


def policy_text(
    rules: str,
    *,
    before: str = "",
    after: str = "",
    violation: str = "report",
    calls: str = CALLS,
    targets: str = "icall self",
    heap: str = "heap tracked",
) -> str:
    """A policy for sctp with these rules, and what every policy needs."""
    return (
        f'use std.linux\nuse std.net\n{before}\ncompartment sctp {{\n    code modules "sctp"\n    {heap}\n'
        f"    {calls}\n    {targets}\n{rules}\n"
        f"    on violation {violation}\n}}\n{after}\n"
    )


@cache
def _checked(text: str) -> CheckedPolicy:
    parsed = parse_policy(SourceFile("policy.o2c", text))
    return check(parsed, sctp(), standard_library())[0]


@cache
def _compiled(text: str) -> tuple[CheckedPolicy, Lowered]:
    return _checked(text), lower(_checked(text), sctp(), library_sources())


def failures(tests: str, rules: str = "", **parts: str) -> list[str]:
    """What is wrong in the `test` blocks of a policy with these rules; nothing if all of them pass."""
    policy, lowered = _compiled(policy_text(rules, after=tests, **parts))
    results = list(run_tests(policy, sctp(), lowered.module))
    assert results, "no test was run"
    return [problem.message for result in results for problem in result.problems]


@dataclass
class Confined:
    """A lowered policy in a fresh world."""

    policy: CheckedPolicy
    lowered: Lowered
    world: World = field(init=False)

    def __post_init__(self) -> None:
        self.world = World(self.lowered.module, sctp())
        self.phase(FINAL)

    @property
    def module(self) -> ir.Module:
        return self.lowered.module

    @property
    def types(self) -> Types:
        return number_types(self.policy, sctp())

    def phase(self, phase: int) -> None:
        words = self.world.machine.tables["globals"]
        words.store(0, "started", self.world.machine.now)
        words.store(0, "phase", phase)

    def call(self, function: str, *arguments: int) -> int:
        """A library function's answer."""
        return self.world.interpreter.run_function(function, *(a & (2**64 - 1) for a in arguments)).value

    def hook(self, name: str, *arguments: int, registers: Mapping[str, int] | None = None) -> int:
        """Runs a hook; its result."""
        return self.world.interpreter.run_hook(name, arguments=arguments, registers=registers).value

    def site(self, function: str, kind: ir.SiteKind = ir.SiteKind.STORE, note: str = "") -> ir.Site:
        """The first site of that kind in a function."""
        return next(
            s
            for s in self.module.sites
            if s.function == function and s.kind is kind and (not note or s.note == note)
        )

    def noted(self, note: str) -> ir.Site:
        """The first site with that note (``call of F``, ``result of F``)."""
        return next(s for s in self.module.sites if s.note == note)

    def run(self, site: ir.Site, *arguments: int, **registers: int) -> Outcome:
        """The check of a site, with the first arguments of a call, on a second of its own."""
        self.world.machine.now += 2 * SECOND
        values = {"rsp": STACK_POINTER, **dict(zip(ARGUMENTS, arguments, strict=False)), **registers}
        return self.world.interpreter.run_site(site.number, values)

    def kinds(self, outcome: Outcome) -> list[int]:
        """Kinds of the events of a run."""
        names = self.world.machine.rings["events"].definition.fields
        return [event.fields[names.index("kind")] for event in outcome.events]

    def store(self, address: int, size: int = 8, function: str = "sctp_outq_tail") -> str:
        """The verdict on a store of that many bytes by a function of the compartment."""
        self.world.machine.now += 2 * SECOND
        number = self.site(function).number
        outcome = self.world.interpreter.run_function("check_store", address, size, number, STACK_POINTER, 0)
        names = {(): "allow", (STORE_DENIED,): "deny", (AUDITIONED,): "audition", (UNCERTAIN,): "uncertain"}
        return names[tuple(self.kinds(outcome))]

    def object(self, size: int, flags: int = 0, struct: str | None = None, cache: str = "kmalloc-64") -> int:
        """A slab object, recorded with these flags (0: not at all) and the types of ``struct``."""
        address = self.world.slab_object(size, cache)
        self.world.machine.memory.write(address, bytes(size))
        if flags:
            assert self.call("gain", address, size, flags, self.types.mask(struct)) == 1
        return address

    def counter(self, name: str) -> int:
        """A word of the table `globals`."""
        return self.world.machine.tables["globals"].load(0, name)


def confined(rules: str = "", tree: IntegerTree | None = None, **parts: str) -> Confined:
    """A policy with these rules, in a world of its own."""
    text = policy_text(rules, **parts)
    if tree is not None:
        return Confined(_checked(text), lower(_checked(text), sctp(), library_sources(), tree))
    return Confined(*_compiled(text))


def offset_of(struct: str, path: str) -> int:
    """Bytes from a struct's start to a field."""
    place = sctp().types.find_field(struct, path)
    assert place is not None, path
    return place.offset


def indirect_site(kernel: Confined, kind: ir.SiteKind = ir.SiteKind.INDIRECT_CALL) -> tuple[ir.Site, str]:
    """A site that goes where a register says, and the register."""
    for site in kernel.module.sites:
        register = site.check.removeprefix("target_").removesuffix("_jump")
        if site.kind is kind and register in ("rax", "rdx", "rcx", "rbx", "r8"):
            return site, register
    raise AssertionError("the target has no such site")


def call_through_pointer(
    kernel: Confined, target: str, *arguments: int, kind: ir.SiteKind = ir.SiteKind.INDIRECT_CALL
) -> list[int]:
    """Kinds of the reports of a call (or jump) to a kernel function through a pointer."""
    site, register = indirect_site(kernel, kind)
    return kernel.kinds(kernel.run(site, *arguments, **{register: kernel.world.function(target)}))
