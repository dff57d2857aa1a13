# SPDX-License-Identifier: Apache-2.0
"""What all parts of the checker share: the program, the target, the diagnostics, and the numbering of types."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from o2cc.diagnostics import Collector, Diagnostic, DiagnosticError, Severity, Span, did_you_mean, error
from o2cc.kernel.description import Description
from o2cc.kernel.type_table import FieldPlace, Struct, TypeTable
from o2cc.policy.model import Capability, GrantedType, ValueType
from o2cc.policy.names import ParsedModule, Program
from o2cc.syntax import nodes

# How many definitions may need each other in a row.
MAX_DEPTH = 64


class LimitedCollector(Collector):
    """A collector that ends the run at `MAX_ERRORS` errors, so that no input makes it run long."""

    errors = 0

    def add(self, diagnostic: Diagnostic) -> None:
        """Keep one more; raises DiagnosticError at the limit."""
        super().add(diagnostic)
        if diagnostic.severity is not Severity.ERROR:
            return
        self.errors += 1
        if self.errors >= MAX_ERRORS:
            self.diagnostics.append(
                error(
                    "O2C0227",
                    f"{MAX_ERRORS} errors, and not looking further",
                    help="mend these first",
                    path=diagnostic.source,
                )
            )
            raise DiagnosticError(self.diagnostics)


MAX_ERRORS = 100


@dataclass
class TypeNumbers:
    """Numbers struct types from 1, in the order of their first use."""

    table: TypeTable
    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, struct: str) -> int:
        """The number of a struct, a new one if it has none yet."""
        return self.numbers.setdefault(struct, len(self.numbers) + 1)

    def granted_types(self) -> tuple[GrantedType, ...]:
        """All numbered types."""
        return tuple(
            GrantedType(number, struct, found.size if (found := self.table.struct_by_name.get(struct)) else 0)
            for struct, number in self.numbers.items()
        )


class CapabilityFinder(Protocol):
    """Finds capabilities for expressions (`o2cc.policy.capabilities`, which needs expressions itself)."""

    def named(self, context: Context, module: ParsedModule, name: nodes.QualifiedName) -> Capability | None:
        """The capability of that name; reports what is wrong."""
        ...

    def fitting(self, context: Context, module: ParsedModule, struct: str) -> tuple[Capability, ...]:
        """The visible capabilities of a struct type."""
        ...


@dataclass
class Context:
    """State of one run of the checker.

    Without a ``description`` names of structs, fields and functions cannot be looked up: what needs them is left
    out silently, and the result serves for diagnostics only.
    """

    program: Program
    description: Description | None
    collector: Collector
    finder: CapabilityFinder
    table: TypeTable = field(init=False)
    types: TypeNumbers = field(init=False)
    capabilities: dict[int, Capability] = field(default_factory=dict)  # by id of the CapsDef node
    broken_capabilities: set[int] = field(default_factory=set)
    constants: dict[int, tuple[int, ValueType, str] | None] = field(default_factory=dict)
    resolving: list[int] = field(default_factory=list)
    granted_structs: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.table = self.description.types if self.description is not None else TypeTable()
        self.types = TypeNumbers(self.table)

    @property
    def has_target(self) -> bool:
        """Whether names can be checked against a target."""
        return self.description is not None

    @contextmanager
    def resolving_definition(self, node: nodes.Node, what: str, span: Span) -> Iterator[bool]:
        """Guards the resolution of a definition: False, after a diagnostic at ``span``, if it needs itself
        (O2C0207) or if definitions need each other too deeply (O2C0226)."""
        cyclic = id(node) in self.resolving
        if cyclic or len(self.resolving) >= MAX_DEPTH:
            message = (
                f"{what} needs itself" if cyclic else f"{what} needs too many others one after the other"
            )
            label = "" if cyclic else f"at most {MAX_DEPTH}"
            self.collector.add(error("O2C0207" if cyclic else "O2C0226", message, span, label))
            yield False
            return
        self.resolving.append(id(node))
        try:
            yield True
        finally:
            self.resolving.pop()

    def struct(self, type_: nodes.StructType) -> Struct | None:
        """The struct or union that a type names; reports one that is unknown or is the other of the two (O2C0210)."""
        name = type_.name
        found = self.table.struct_by_name.get(name.text)
        if found is None:
            if self.has_target:
                self.collector.add(
                    error(
                        "O2C0210",
                        f"unknown {type_.kind} `{name.text}`",
                        name.span,
                        "not in the type information of this target",
                        help=did_you_mean(name.text, self.table.struct_by_name)
                        or f"if the kernel has it, `o2c scan --struct {name.text}` adds it to the description",
                    )
                )
            return None
        if found.kind != type_.kind:
            self.collector.add(
                error(
                    "O2C0210",
                    f"`{name.text}` is a {found.kind}, not a {type_.kind}",
                    type_.span,
                    help=f"write `{found.kind} {name.text}`",
                )
            )
            return None
        return found

    def field(self, struct: str, path: str, span: Span) -> FieldPlace | None:
        """The place of a member; reports one that is unknown (O2C0211)."""
        place = self.table.find_field(struct, path)
        if place is None and self.has_target:
            self.collector.add(self.unknown_field(struct, path, span))
        return place

    def unknown_field(self, struct: str, path: str, span: Span) -> Diagnostic:
        """The diagnostic for a member that a struct does not have, with the nearest that it has."""
        *prefix, last = path.split(".")
        owner, known = struct, ""
        for part in prefix:
            place = self.table.find_field(owner, part)
            if place is None or place.type.name is None or place.type.kind not in ("struct", "union"):
                last = part
                break
            owner, known = place.type.name, f"{known}{part}."
        suggestion = did_you_mean(last, self.table.field_names(owner))
        return error(
            "O2C0211",
            f"`struct {struct}` has no field `{path}`",
            span,
            help=suggestion.replace("`", f"`{known}", 1) if suggestion else None,
        )

    def module_of(self, span: Span) -> ParsedModule:
        """The module that a span lies in."""
        return self.program.module_of(span)
