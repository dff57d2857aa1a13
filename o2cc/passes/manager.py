# SPDX-License-Identifier: Apache-2.0
"""Passes over modules, and pipelines of them.

A pass is a frozen dataclass: its class name in kebab case is its name on the command line
(``DeadCode`` is ``dead-code``), its fields are its options (``dead-code{keep=a;b}``).  It maps a module to a
module and does nothing else.  A pipeline is checked before anything runs: each pass `requires` facts that the
context gives or an earlier pass `provides`.  The verifier runs before the first pass and after each.

Codes: O2C0530 no such pass, O2C0531 a wrong option or malformed pipeline, O2C0532 a fact that is missing,
O2C0533 a pass that made invalid IR (a bug of ours).
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeVar

from o2cc.diagnostics import Diagnostic, DiagnosticError, did_you_mean, error
from o2cc.ir import nodes as ir
from o2cc.ir.verifier import require_valid, verify
from o2cc.ir.walk import Body
from o2cc.kernel.description import Description
from o2cc.passes.graph import UnitIndex

DESCRIPTION = "description"
"""The fact that the context holds a description of the target."""

CONTROL_FLOW = "control-flow-kept"
"""The fact that every indirect call and jump of the compartment is checked and that no granted store reaches a
return address or a saved register, so that code runs along the control flow that the description shows."""

VIOLATIONS_NOT_SKIPPED = "violations-not-skipped"
"""The fact that a violating store is not skipped: see `PassContext.skips_violations`."""


@dataclass(frozen=True)
class PassContext:
    """What passes may know beside the module.

    ``skips_violations``: the runtime steps over a store that it denies and lets the code go on.  A later store to
    the same memory must then be checked for itself: that an earlier check ran does not say that it allowed.
    ``own_symbols``: kernel objects that count as the compartment's own data (built-in targets).
    ``aiming_symbols``: own variables that say where a grant leads, which nobody may write.
    """

    description: Description | None = None
    control_flow_kept: bool = False
    skips_violations: bool = True
    own_symbols: frozenset[str] = frozenset()
    aiming_symbols: frozenset[str] = frozenset()

    @property
    def facts(self) -> frozenset[str]:
        """Names of the facts that hold from the start."""
        found: set[str] = set()
        if self.description is not None:
            found.add(DESCRIPTION)
        if self.control_flow_kept:
            found.add(CONTROL_FLOW)
        if not self.skips_violations:
            found.add(VIOLATIONS_NOT_SKIPPED)
        return frozenset(found)

    @cached_property
    def units(self) -> UnitIndex:
        """The units of the target, for passes that require the description."""
        return UnitIndex(self.target)

    @property
    def target(self) -> Description:
        """The description, for passes that require it."""
        if self.description is None:
            raise ValueError("this pass requires a description")
        return self.description


@dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes."""

    requires: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def run(self, module: ir.Module, context: PassContext) -> ir.Module:
        """The module after the pass; the given one is not changed."""

    @classmethod
    def command_name(cls) -> str:
        """The class name in kebab case."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def __str__(self) -> str:
        """The pass as it is written in a pipeline, options that are not the default included."""
        given = [
            f"{option.name.replace('_', '-')}={_option_text(getattr(self, option.name))}"
            for option in dataclasses.fields(self)
            if getattr(self, option.name) != option.default
        ]
        return self.command_name() + (f"{{{' '.join(given)}}}" if given else "")


Observer = Callable[[Pass, ir.Module], None]
SomeBody = TypeVar("SomeBody", ir.Function, ir.Check, ir.Hook)


class BodyPass(Pass):
    """A pass that changes each body by itself."""

    @abstractmethod
    def change(self, body: Body, module: ir.Module) -> tuple[ir.Block, ...]:
        """The new blocks of a body."""

    def run(self, module: ir.Module, context: PassContext) -> ir.Module:
        def changed(body: SomeBody) -> SomeBody:
            blocks = self.change(body, module)
            return body if blocks == body.blocks else dataclasses.replace(body, blocks=blocks)

        return dataclasses.replace(
            module,
            functions=tuple(changed(f) for f in module.functions),
            checks=tuple(changed(c) for c in module.checks),
            hooks=tuple(changed(h) for h in module.hooks),
        )


def run_pipeline(
    module: ir.Module, passes: Sequence[Pass], context: PassContext, observe: Observer | None = None
) -> ir.Module:
    """Run passes in order, verifying before the first and after each; `observe` sees each result.

    Raises `DiagnosticError` when the module is invalid, a required fact is missing (before anything runs), or a
    pass makes invalid IR.
    """
    require_facts(passes, context)
    require_valid(module)
    for step in passes:
        before = module
        module = step.run(before, context)
        found = verify(module, before)
        if found:
            raise DiagnosticError(_broken(step, found))
        if observe is not None:
            observe(step, module)
    return module


def require_facts(passes: Sequence[Pass], context: PassContext) -> None:
    """Raise `DiagnosticError` if a pass requires what nothing gives."""
    known = set(context.facts)
    problems: list[Diagnostic] = []
    for step in passes:
        for fact in sorted(step.requires - known):
            problems.append(
                error("O2C0532", f"pass `{step.command_name()}` requires `{fact}`, which nothing gives")
            )
        known |= step.provides
    if problems:
        raise DiagnosticError(problems)


def parse_pipeline(text: str, passes: Mapping[str, type[Pass]]) -> tuple[Pass, ...]:
    """Passes from ``name,name{option=value option=value}``; values of lists are separated by ``;``.

    Raises `DiagnosticError` with everything that is wrong.
    """
    problems: list[Diagnostic] = []
    found: list[Pass] = []
    for part in re.split(r",(?![^{]*\})", text):
        match = re.fullmatch(r"\s*([a-z0-9-]+)\s*(?:\{([^{}]*)\})?\s*", part)
        if match is None:
            problems.append(error("O2C0531", f"`{part.strip()}` is not a pass with its options"))
            continue
        name, options = match.group(1), match.group(2) or ""
        if name not in passes:
            help_text = did_you_mean(name, passes) or "passes: " + ", ".join(
                f"`{known}`" for known in sorted(passes)
            )
            problems.append(error("O2C0530", f"there is no pass `{name}`", help=help_text))
            continue
        kind = passes[name]
        values: dict[str, object] = {}
        for option in options.split():
            problem = _parse_option(kind, option, values)
            if problem is not None:
                problems.append(error("O2C0531", f"pass `{name}`: {problem}"))
        found.append(kind(**values))
    if problems:
        raise DiagnosticError(problems)
    return tuple(found)


def _parse_option(kind: type[Pass], option: str, values: dict[str, object]) -> str | None:
    key, equals, text = option.partition("=")
    known = {field.name: field for field in dataclasses.fields(kind)}
    field = known.get(key.replace("-", "_"))
    if field is None or not equals:
        names = ", ".join(f"`{name.replace('_', '-')}`" for name in known) or "none"
        return f"`{option}` is not an option; there are: {names}"
    if isinstance(field.default, bool):
        if text not in ("true", "false"):
            return f"`{key}` is `true` or `false`"
        values[field.name] = text == "true"
    elif isinstance(field.default, int):
        if not re.fullmatch(r"[0-9]{1,9}", text):
            return f"`{key}` is a number"
        values[field.name] = int(text)
    elif isinstance(field.default, str):
        values[field.name] = text
    else:
        values[field.name] = tuple(item for item in text.split(";") if item)
    return None


def _option_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ";".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _broken(step: Pass, found: Sequence[Diagnostic]) -> list[Diagnostic]:
    notes = tuple(f"{d.message}; {'; '.join(d.notes)}" for d in found[:10])
    return [
        error(
            "O2C0533",
            f"pass `{step}` made invalid code; this is a bug of o2c, not of the policy",
            found[0].primary.span if found[0].primary else None,
            notes=notes,
        )
    ]
