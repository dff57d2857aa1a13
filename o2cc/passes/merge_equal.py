# SPDX-License-Identifier: Apache-2.0
"""Keeps one of several functions or checks that are the same but for the names of values and blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from o2cc.ir import nodes as ir
from o2cc.ir.walk import Body, operands, properties, result
from o2cc.passes.manager import Pass, PassContext, SomeBody


@dataclass(frozen=True)
class MergeEqual(Pass):
    """Keeps one of equal functions and checks.

    Calls and sites of the others go to it.

    Spans are not compared: the first one's stand for all.  Sites keep their own span, which is what reports name.
    """

    def run(self, module: ir.Module, context: PassContext) -> ir.Module:
        while True:
            same = _representatives(module.functions)
            if not same:
                break
            module = _redirect_calls(module, same)
        checks = _representatives(module.checks)
        if not checks:
            return module
        return replace(
            module,
            checks=tuple(c for c in module.checks if c.name not in checks),
            sites=tuple(replace(s, check=checks[s.check]) if s.check in checks else s for s in module.sites),
        )


def _representatives(bodies: tuple[ir.Function, ...] | tuple[ir.Check, ...]) -> dict[str, str]:
    """For each body that equals an earlier one, the name of the first such."""
    first: dict[object, str] = {}
    same: dict[str, str] = {}
    for body in bodies:
        shape = canonical(body)
        if shape in first:
            same[body.name] = first[shape]
        else:
            first[shape] = body.name
    return same


def canonical(body: Body) -> object:
    """Something hashable that two bodies share exactly when they differ in names and spans only."""
    values: dict[str, int] = {}
    variables: dict[str, int] = {}
    numbers = {block.name: number for number, block in enumerate(body.blocks)}
    parameters: tuple[str, ...] = ()
    inline = False
    if isinstance(body, ir.Function):
        parameters, inline = body.parameters, body.inline
    for name in parameters:
        values[name] = len(values)

    def number(operand: ir.Operand) -> tuple[str, int]:
        if isinstance(operand, ir.Value):
            return "value", values.setdefault(operand.name, len(values))
        if isinstance(operand, ir.Variable):
            return "variable", variables.setdefault(operand.name, len(variables))
        return "constant", operand.value

    shape: list[object] = [type(body), len(parameters), inline]
    for block in body.blocks:
        for instruction in block.instructions:
            shape.append(type(instruction))
            shape.extend(map(number, operands(instruction)))
            shape.append(properties(instruction))
            defined = instruction.variable if isinstance(instruction, ir.Assign) else result(instruction)
            if defined is not None:
                shape.append(number(defined))
        end = block.terminator
        shape.append(type(end))
        shape.extend(map(number, operands(end)))
        shape.append(end.verdict if isinstance(end, ir.Decide) else _targets(end, numbers))
    return tuple(shape)


def _targets(end: ir.Terminator, numbers: Mapping[str, int]) -> tuple[int | str, ...]:
    """Where a terminator goes, by the numbers of the blocks."""
    names = {ir.Branch: ("if_true", "if_false"), ir.Jump: ("target",)}.get(type(end), ())
    return tuple(numbers.get(name, name) for name in (getattr(end, field) for field in names))


def _redirect_calls(module: ir.Module, same: dict[str, str]) -> ir.Module:
    def redirected(body: SomeBody) -> SomeBody:
        blocks = tuple(
            replace(
                block,
                instructions=tuple(
                    replace(i, function=same[i.function])
                    if isinstance(i, ir.Call) and i.function in same
                    else i
                    for i in block.instructions
                ),
            )
            for block in body.blocks
        )
        return body if blocks == body.blocks else replace(body, blocks=blocks)

    return replace(
        module,
        functions=tuple(redirected(f) for f in module.functions if f.name not in same),
        checks=tuple(redirected(c) for c in module.checks),
        hooks=tuple(redirected(h) for h in module.hooks),
    )
