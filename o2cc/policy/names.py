# SPDX-License-Identifier: Apache-2.0
"""Modules, imports and the names that they define.

A policy and everything that it uses, directly or not, is a `Program`.  Constants, sets, capabilities and kinds of
entries are visible in the module that defines them and, by their short or their qualified name, in modules that
`use` it.  What `extern fn` and `extern entry struct` say of the kernel holds everywhere in the program; what the
policy itself says of a function takes the place of what a library says.

Reading a module is the caller's business: a `Resolver` turns its name into a parsed source.

Codes: O2C0200 unknown module, O2C0201 cyclic `use`, O2C0202 unknown name, O2C0203 ambiguous name, O2C0204 defined
twice, O2C0205 unknown set, O2C0206 unknown capability, O2C0208 unknown kind of entry.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from o2cc.diagnostics import Collector, Label, SourceFile, Span, did_you_mean, error
from o2cc.syntax import nodes


@dataclass(frozen=True)
class ParsedModule:
    """A parsed source under the name that `use` has for it (empty: the policy itself)."""

    name: str
    source: SourceFile
    file: nodes.PolicyFile


class Resolver(Protocol):
    """Finds a module by its dotted name; None if there is none.  May raise DiagnosticError (syntax)."""

    def __call__(self, name: str) -> ParsedModule | None: ...

    def names(self) -> Iterable[str]:
        """The modules that there are, for suggestions."""
        ...


class NoModules:
    """A resolver that knows no module."""

    def __call__(self, name: str) -> ParsedModule | None:
        return None

    def names(self) -> Iterable[str]:
        return ()


Definition = nodes.Const | nodes.SetDef | nodes.CapsDef | nodes.ExternEntry

_WORDS: Mapping[type[Definition], str] = {
    nodes.Const: "constant",
    nodes.SetDef: "set",
    nodes.CapsDef: "capability",
    nodes.ExternEntry: "kind of entry",
}
_CODES: Mapping[type[Definition], str] = {
    nodes.Const: "O2C0202",
    nodes.SetDef: "O2C0205",
    nodes.CapsDef: "O2C0206",
    nodes.ExternEntry: "O2C0208",
}


@dataclass(frozen=True)
class Defined:
    """A definition and the module that it stands in."""

    module: ParsedModule
    node: Definition


@dataclass
class Program:
    """The policy with all modules that it uses."""

    main: ParsedModule
    modules: dict[str, ParsedModule] = field(default_factory=dict)
    definitions: dict[str, dict[tuple[type[Definition], str], Defined]] = field(default_factory=dict)
    functions: dict[str, tuple[ParsedModule, nodes.ExternFunction]] = field(default_factory=dict)
    function_globs: list[tuple[str, ParsedModule, nodes.ExternFunction]] = field(default_factory=list)
    table_entries: dict[tuple[str, str], list[tuple[ParsedModule, nodes.ExternEntry]]] = field(
        default_factory=dict
    )
    shared_types: dict[str, Span] = field(default_factory=dict)

    def module_of(self, span: Span) -> ParsedModule:
        """The module that a span lies in."""
        for module in self.modules.values():
            if module.source.name == span.source:
                return module
        return self.main

    def extern(self, function: str) -> tuple[ParsedModule, nodes.ExternFunction] | None:
        """What the program says of a kernel function: the policy before its modules, a name before a pattern, and of
        patterns the first that fits."""
        found = self.functions.get(function)
        if found is not None and found[0] is self.main:
            return found
        for pattern, module, node in self.function_globs:
            if found is not None and module is not self.main:
                break
            if fnmatch.fnmatchcase(function, pattern):
                return module, node
        return found

    def used_by(self, module: ParsedModule) -> tuple[ParsedModule, ...]:
        """The module itself, then what it uses."""
        used = [
            self.modules[item.module.text]
            for item in module.file.items
            if isinstance(item, nodes.Use) and item.module.text in self.modules
        ]
        return (module, *used)

    def visible(self, module: ParsedModule, kind: type[Definition]) -> dict[str, Defined]:
        """Short names of that kind that can be used in ``module``; its own go before those it uses."""
        found: dict[str, Defined] = {}
        for used in self.used_by(module):
            for (defined_kind, name), defined in self.definitions.get(used.name, {}).items():
                if defined_kind is kind:
                    found.setdefault(name, defined)
        return found

    def find(
        self, module: ParsedModule, kind: type[Definition], name: nodes.QualifiedName | nodes.Path
    ) -> list[Defined]:
        """The definitions that a name may mean in ``module``: none, one, or several (ambiguous)."""
        *prefix, last = (part.text for part in name.parts)
        key = (kind, last)
        if prefix:
            used = self.modules.get(".".join(prefix))
            if used is None or used not in self.used_by(module):
                return []
            defined = self.definitions.get(used.name, {}).get(key)
            return [defined] if defined is not None else []
        own = self.definitions.get(module.name, {}).get(key)
        if own is not None:
            return [own]
        return [
            defined
            for used in self.used_by(module)[1:]
            if (defined := self.definitions.get(used.name, {}).get(key)) is not None
        ]

    def lookup(
        self,
        module: ParsedModule,
        kind: type[Definition],
        name: nodes.QualifiedName,
        collector: Collector,
    ) -> Defined | None:
        """The definition that ``name`` means; reports a name that means nothing, or several things."""
        found = self.find(module, kind, name)
        word = _WORDS[kind]
        if len(found) == 1:
            return found[0]
        if found:
            collector.add(
                error(
                    "O2C0203",
                    f"`{name.text}` is ambiguous",
                    name.span,
                    secondary=[Label(item.node.span, f"a {word} of `{item.module.name}`") for item in found],
                    help=f"write `{found[0].module.name}.{name.text}`",
                )
            )
            return None
        known = self.visible(module, kind)
        candidates = [*known, *(f"{d.module.name}.{short}" for short, d in known.items() if d.module.name)]
        collector.add(
            error(
                _CODES[kind],
                f"unknown {word} `{name.text}`",
                name.span,
                help=did_you_mean(name.text, candidates) or _missing_use(self, name),
            )
        )
        return None


def _missing_use(program: Program, name: nodes.QualifiedName) -> str | None:
    prefix = ".".join(part.text for part in name.parts[:-1])
    if prefix and prefix not in program.modules:
        return f"add `use {prefix}` at the top of the file"
    return None


def load_program(main: ParsedModule, resolve: Resolver, collector: Collector) -> Program:
    """Read everything that the policy uses and gather what it defines."""
    program = Program(main)
    _load(program, main, resolve, collector, ())
    for module in program.modules.values():
        _define(program, module, collector)
    return program


def _load(
    program: Program,
    module: ParsedModule,
    resolve: Resolver,
    collector: Collector,
    path: tuple[str, ...],
) -> None:
    program.modules[module.name] = module
    path = (*path, module.name)
    for item in module.file.items:
        if not isinstance(item, nodes.Use):
            continue
        name = item.module.text
        if name in path:
            collector.add(
                error(
                    "O2C0201",
                    f"module `{name}` uses itself",
                    item.module.span,
                    notes=[" uses ".join(f"`{part or module.source.name}`" for part in (*path, name))],
                )
            )
            continue
        if name in program.modules:
            continue
        found = resolve(name)
        if found is None:
            collector.add(
                error(
                    "O2C0200",
                    f"unknown module `{name}`",
                    item.module.span,
                    help=did_you_mean(name, resolve.names()),
                )
            )
            continue
        _load(program, found, resolve, collector, path)


def _same_shape(one: nodes.ExternEntry, other: nodes.ExternEntry) -> bool:
    """Whether two descriptions of an entry are for the same prototype.  Kernels differ in what a slot gets: then
    each prototype has a description, told apart by the number of parameters."""
    return (len(one.parameters.parameters), one.parameters.variadic) == (
        len(other.parameters.parameters),
        other.parameters.variadic,
    )


def _define(program: Program, module: ParsedModule, collector: Collector) -> None:
    table = program.definitions.setdefault(module.name, {})
    is_main = module is program.main
    for item in module.file.items:
        if isinstance(item, nodes.Const | nodes.SetDef | nodes.CapsDef):
            _define_name(table, Defined(module, item), item.name, collector)
        elif isinstance(item, nodes.ExternEntry):
            if item.name is not None:
                _define_name(table, Defined(module, item), item.name, collector)
            elif item.table is not None and item.field is not None:
                key = (item.table.name.text, item.field.text)
                others = program.table_entries.setdefault(key, [])
                earlier = next((known for known in others if _same_shape(known[1], item)), None)
                if earlier is not None and (
                    earlier[0] is module or not _is_main(program, earlier[0], is_main)
                ):
                    _twice(
                        f"entry `{item.table.text}.{item.field.text}`", item.span, earlier[1].span, collector
                    )
                if earlier is None:
                    others.append((module, item))
                elif is_main:
                    others[others.index(earlier)] = (module, item)
        elif isinstance(item, nodes.SharedTypes):
            for shared in item.types:
                program.shared_types.setdefault(shared.name.text, shared.span)
        elif isinstance(item, nodes.ExternFunction):
            for pattern in item.names:
                if isinstance(pattern, nodes.SetRef):
                    continue
                if pattern.is_glob:
                    if is_main:
                        program.function_globs.insert(0, (pattern.text, module, item))
                    else:
                        program.function_globs.append((pattern.text, module, item))
                    continue
                known = program.functions.get(pattern.text)
                if known is not None and (known[0] is module or not _is_main(program, known[0], is_main)):
                    _twice(f"function `{pattern.text}`", pattern.span, known[1].span, collector)
                if known is None or is_main:
                    program.functions[pattern.text] = (module, item)


def _is_main(program: Program, earlier: ParsedModule, now_main: bool) -> bool:
    """Whether one of two statements is the policy's own, which then wins."""
    return now_main or earlier is program.main


def _define_name(
    table: dict[tuple[type[Definition], str], Defined],
    defined: Defined,
    name: nodes.Name,
    collector: Collector,
) -> None:
    key = (type(defined.node), name.text)
    earlier = table.get(key)
    if earlier is not None:
        _twice(f"{_WORDS[key[0]]} `{name.text}`", name.span, earlier.node.span, collector)
        return
    table[key] = defined


def _twice(what: str, span: Span, earlier: Span, collector: Collector) -> None:
    collector.add(
        error("O2C0204", f"{what} is defined twice", span, secondary=[Label(earlier, "first defined here")])
    )
