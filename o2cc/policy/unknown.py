# SPDX-License-Identifier: Apache-2.0
"""Which kernel functions a target calls, and which of them no library speaks of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass

from o2cc.diagnostics import Collector, SourceFile
from o2cc.kernel.description import Description
from o2cc.kernel.type_table import Prototype
from o2cc.policy.names import ParsedModule, Resolver, load_program
from o2cc.policy.structs import value_type
from o2cc.policy.target import TargetCode
from o2cc.syntax import nodes


@dataclass(frozen=True, slots=True)
class UnknownGate:
    """A direct callee that no `extern fn` names.

    ``callers`` are functions of the target.  ``by_type`` are the parameters that the default checks, ``shared`` those of
    which it asks only that they are not the compartment's own, ``unchecked`` the pointers that it cannot check.
    """

    function: str
    prototype: Prototype | None
    callers: tuple[str, ...]
    by_type: tuple[str, ...]
    shared: tuple[str, ...]
    unchecked: tuple[str, ...]

    @property
    def signature(self) -> str:
        """The prototype in C, or just the name."""
        if self.prototype is None:
            return f"{self.function}(?)"
        parameters = [f"{item.type} {item.name}".replace("* ", "*") for item in self.prototype.parameters]
        if self.prototype.variadic:
            parameters.append("...")
        return f"{self.prototype.returns} {self.function}({', '.join(parameters) or 'void'})"


@dataclass(frozen=True, slots=True)
class Callees:
    """The direct callees of a target: the unknown ones by name, how many each library knows (those that know most
    first), and how many there are in all."""

    unknown: tuple[UnknownGate, ...]
    known: dict[str, int]
    total: int


def callees_of(description: Description, libraries: Iterable[str], resolve: Resolver) -> Callees:
    """What libraries know of the kernel functions that a target calls.

    ``libraries`` are the modules that are taken into account.  Raises DiagnosticError if one of them is broken.
    """
    collector = Collector()
    main = ParsedModule("", SourceFile("<gates>", ""), _uses(libraries))
    program = load_program(main, resolve, collector)
    collector.raise_if_errors()
    target = TargetCode(description)
    unknown: list[UnknownGate] = []
    known: Counter[str] = Counter()
    for function, callers in target.callees.items():
        extern = program.extern(function)
        if extern is None:
            unknown.append(_unknown(function, callers, target, program.shared_types))
        else:
            known[extern[0].name] += 1
    return Callees(tuple(unknown), dict(known.most_common()), len(target.callees))


def _uses(libraries: Iterable[str]) -> nodes.PolicyFile:
    span = SourceFile("<gates>", "").span(0, 0)
    items = tuple(
        nodes.Use(span, nodes.QualifiedName(span, tuple(nodes.Name(span, part) for part in name.split("."))))
        for name in libraries
    )
    return nodes.PolicyFile(span, items, ())


def _unknown(
    function: str, callers: tuple[str, ...], target: TargetCode, shared_types: Container[str]
) -> UnknownGate:
    prototype = target.prototype(function)
    by_type: list[str] = []
    shared: list[str] = []
    unchecked: list[str] = []
    for parameter in prototype.parameters if prototype is not None else ():
        type_ = value_type(parameter.type)
        if type_.struct is not None and type_.struct in shared_types:
            shared.append(parameter.name)
        elif type_.struct is not None or parameter.type.is_function_pointer:
            by_type.append(parameter.name)
        elif parameter.type.kind == "pointer":
            unchecked.append(parameter.name)
    return UnknownGate(function, prototype, callers, tuple(by_type), tuple(shared), tuple(unchecked))
