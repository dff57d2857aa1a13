# SPDX-License-Identifier: Apache-2.0
"""Set expressions to function names, each with the place in the policy that names it.

The more exact mention of a name decides: a name before a pattern, a pattern before a named set, a set before
`imports`.  `except` takes away from its own expression only.

Codes: O2C0205 unknown set, O2C0207 set that needs itself, O2C0213 unknown function, O2C0217 pattern that fits nothing.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from o2cc.diagnostics import Span, did_you_mean, error, warning
from o2cc.policy.context import Context
from o2cc.policy.names import Defined, ParsedModule
from o2cc.syntax import nodes


class Exactness(IntEnum):
    """How a name was mentioned; the smaller decides."""

    NAME = 0
    PATTERN = 1
    SET = 2
    IMPORTS = 3


@dataclass(frozen=True, slots=True)
class Mention:
    """Where and how a name is mentioned."""

    span: Span
    exactness: Exactness


@dataclass(frozen=True)
class Universe:
    """The names that patterns are matched against.

    ``noun`` says what they are, for diagnostics.  ``strict``: a name outside is an error (O2C0213); otherwise it is
    kept out and `unknown` gathers it.  ``quiet``: nothing is said of patterns that fit nothing either.  ``open``: there
    are more names than these, so that a plain name is always kept.  ``sets``: named sets that are resolved already.
    """

    names: Collection[str]
    imports: Collection[str]
    noun: str
    strict: bool
    quiet: bool = False
    open: bool = False
    sets: dict[int, Mapping[str, Exactness]] = field(default_factory=dict, compare=False)


@dataclass
class Resolved:
    """Names that a set expression holds, and those that its `except` took away."""

    included: dict[str, Mention] = field(default_factory=dict)
    excluded: dict[str, Mention] = field(default_factory=dict)
    unknown: dict[str, Span] = field(default_factory=dict)


def resolve_set(
    context: Context, module: ParsedModule, node: nodes.SetExpression, universe: Universe
) -> Resolved:
    """Resolve a set expression that stands in ``module``."""
    return resolve_elements(context, module, node.include, node.exclude, universe)


def resolve_elements(
    context: Context,
    module: ParsedModule,
    include: tuple[nodes.SetElement, ...],
    exclude: tuple[nodes.SetElement, ...],
    universe: Universe,
) -> Resolved:
    """Resolve a set given as its elements."""
    resolved = Resolved()
    included: dict[str, Mention] = {}
    excluded: dict[str, Mention] = {}
    for element in include:
        _add(context, module, element, universe, included, resolved.unknown, None)
    for element in exclude:
        _add(context, module, element, universe, excluded, {}, None)
    resolved.included = {name: mention for name, mention in included.items() if name not in excluded}
    resolved.excluded = {name: mention for name, mention in excluded.items() if name in included}
    return resolved


def _add(
    context: Context,
    module: ParsedModule,
    element: nodes.SetElement,
    universe: Universe,
    into: dict[str, Mention],
    unknown: dict[str, Span],
    through: Span | None,
) -> None:
    """Add the names of one element; ``through`` is the mention of the named set that we are in."""
    match element:
        case nodes.Imports():
            for name in universe.imports:
                _mention(into, name, Mention(through or element.span, Exactness.IMPORTS))
        case nodes.SetRef():
            defined = context.program.lookup(module, nodes.SetDef, element.name, context.collector)
            if defined is None:
                return
            assert isinstance(defined.node, nodes.SetDef)
            for name, exactness in _set_names(context, defined, universe, element.span).items():
                _mention(into, name, Mention(through or element.span, exactness))
        case nodes.SymbolPattern() if element.is_glob:
            matched = [name for name in universe.names if fnmatch.fnmatchcase(name, element.text)]
            for name in matched:
                _mention(into, name, _where(element, through, Exactness.PATTERN))
            silent = universe.quiet or element.optional
            if not matched and through is None and context.has_target and not silent:
                context.collector.add(
                    warning("O2C0217", f"no {universe.noun} matches `{element.text}`", element.span)
                )
        case nodes.SymbolPattern():
            known = element.text in universe.names
            if known or universe.open:
                _mention(into, element.text, _where(element, through, Exactness.NAME))
            if not known and through is None and context.has_target and not element.optional:
                unknown[element.text] = element.span
                if universe.strict:
                    context.collector.add(
                        error(
                            "O2C0213",
                            f"unknown {universe.noun} `{element.text}`",
                            element.span,
                            help=did_you_mean(element.text, universe.names),
                        )
                    )


def _set_names(context: Context, defined: Defined, universe: Universe, use: Span) -> Mapping[str, Exactness]:
    """The names of a named set."""
    node = defined.node
    assert isinstance(node, nodes.SetDef)
    known = universe.sets.get(id(node))
    if known is not None:
        return known
    included: dict[str, Mention] = {}
    excluded: dict[str, Mention] = {}
    with context.resolving_definition(node, f"set `{node.name.text}`", use) as possible:
        if possible:
            for part in node.value.include:
                _add(context, defined.module, part, universe, included, {}, use)
            for part in node.value.exclude:
                _add(context, defined.module, part, universe, excluded, {}, use)
    names = {name: mention.exactness for name, mention in included.items() if name not in excluded}
    universe.sets[id(node)] = names
    return names


def _where(element: nodes.SymbolPattern, through: Span | None, exactness: Exactness) -> Mention:
    return Mention(element.span, exactness) if through is None else Mention(through, Exactness.SET)


def _mention(into: dict[str, Mention], name: str, mention: Mention) -> None:
    earlier = into.get(name)
    if earlier is None or mention.exactness < earlier.exactness:
        into[name] = mention
