# SPDX-License-Identifier: Apache-2.0
"""`caps` definitions to capabilities with address ranges.

A capability is resolved when something first names it: a library may define capabilities of structs that this
target does not have.

Codes: O2C0206 unknown capability, O2C0207 capability that needs itself, O2C0307 capability of another struct.
"""

from __future__ import annotations

from dataclasses import replace

from o2cc.diagnostics import Label, Span, error
from o2cc.policy.context import Context
from o2cc.policy.expressions import Checker
from o2cc.policy.folding import add
from o2cc.policy.model import Capability, CapabilityRange, Expr, ValueType
from o2cc.policy.names import Defined, ParsedModule
from o2cc.policy.paths import Scope
from o2cc.policy.places import resolve_place, unknown_length
from o2cc.policy.structs import pointer_to
from o2cc.policy.substitute import substitute_argument
from o2cc.syntax import nodes

# All ranges of a capability are looked at in one check, which must stay small.
MAX_RANGES = 16


class Capabilities:
    """The capability finder of a run."""

    def named(self, context: Context, module: ParsedModule, name: nodes.QualifiedName) -> Capability | None:
        """The capability of that name; reports what is wrong."""
        return capability_named(context, module, name)

    def fitting(self, context: Context, module: ParsedModule, struct: str) -> tuple[Capability, ...]:
        """The visible capabilities of a struct type."""
        return capabilities_for(context, module, struct)


def capability_named(context: Context, module: ParsedModule, name: nodes.QualifiedName) -> Capability | None:
    """The capability that ``name`` means in ``module``; reports what is wrong with the name or the definition."""
    defined = context.program.lookup(module, nodes.CapsDef, name, context.collector)
    return None if defined is None else _resolve(context, defined)


def capabilities_for(context: Context, module: ParsedModule, struct: str) -> tuple[Capability, ...]:
    """The visible capabilities of objects of a struct type, by name."""
    found = []
    for _, defined in sorted(context.program.visible(module, nodes.CapsDef).items()):
        assert isinstance(defined.node, nodes.CapsDef)
        if _struct_name(defined.node) == struct:
            capability = _resolve(context, defined)
            if capability is not None:
                found.append(capability)
    return tuple(found)


def _struct_name(node: nodes.CapsDef) -> str | None:
    parameters = node.parameters.parameters
    if len(parameters) == 1 and isinstance(parameters[0].type, nodes.StructType):
        return parameters[0].type.name.text
    return None


def _resolve(context: Context, defined: Defined) -> Capability | None:
    node = defined.node
    assert isinstance(node, nodes.CapsDef)
    known = context.capabilities.get(id(node))
    if known is not None:
        return known
    if id(node) in context.broken_capabilities:
        return None
    capability = _make(context, defined.module, node)
    if capability is None:
        context.broken_capabilities.add(id(node))
    else:
        context.capabilities[id(node)] = capability
    return capability


def _make(context: Context, module: ParsedModule, node: nodes.CapsDef) -> Capability | None:
    """Resolve a definition; None after a diagnostic, which comes once."""
    if _struct_name(node) is None:
        context.collector.add(
            error(
                "O2C0220",
                f"capability `{node.name.text}` needs one parameter that is a struct",
                node.parameters.span,
                help=f"write `caps {node.name.text}(p: struct T)`",
            )
        )
        return None
    parameter = node.parameters.parameters[0]
    assert isinstance(parameter.type, nodes.StructType)
    struct = context.struct(parameter.type)
    if struct is None:
        return None
    scope = Scope(module, parameters={parameter.name.text: (0, pointer_to(struct.name, struct.size))})
    with context.resolving_definition(node, f"capability `{node.name.text}`", node.name.span) as possible:
        ranges = _ranges(context, scope, node) if possible else None
    if ranges is None:
        return None
    return Capability(
        name=node.name.text,
        number=len(context.capabilities) + 1,
        struct=struct.name,
        type_id=context.types.number(struct.name),
        parameter=parameter.name.text,
        ranges=ranges,
        span=node.span,
    )


def _ranges(context: Context, scope: Scope, node: nodes.CapsDef) -> tuple[CapabilityRange, ...] | None:
    ranges: list[CapabilityRange] = []
    complete = True
    for item in node.items:
        place = resolve_place(Checker(context, scope), item.place, pointee=item.capability is not None)
        if place is None:
            complete = False
            continue
        if item.capability is not None:
            nested = capability_named(context, scope.module, item.capability)
            if nested is None:
                complete = False
                continue
            fits(context, nested, place.pointer.type, item.place.span)
            ranges.extend(
                replace(
                    part,
                    start=substitute_argument(part.start, place.pointer),
                    end=substitute_argument(part.end, place.pointer),
                )
                for part in nested.ranges
            )
            continue
        length: Expr | None = place.length
        if length is None:
            complete = False
            if not context.has_target:
                continue
            context.collector.add(unknown_length(item.place.path.text, item.place.span))
            continue
        end = add(place.pointer, length, item.span)
        ranges.append(CapabilityRange(place.pointer, end, item.span, item.per_cpu))
    if len(ranges) > MAX_RANGES:
        context.collector.add(
            error(
                "O2C0228",
                f"capability `{node.name.text}` has {len(ranges)} ranges",
                node.name.span,
                f"at most {MAX_RANGES} can be checked",
            )
        )
        return None
    return tuple(ranges) if complete else None


def fits(context: Context, capability: Capability, type_: ValueType, span: Span) -> bool:
    """Whether a pointer of that type can stand for the capability's object; reports O2C0307 if not."""
    if type_.struct is None or related(context, type_.struct, capability.struct):
        return True
    context.collector.add(
        error(
            "O2C0307",
            f"`{capability.name}` is a capability for `struct {capability.struct}`",
            span,
            f"this points to `struct {type_.struct}`",
            secondary=[Label(capability.span, "defined here")],
        )
    )
    return False


def related(context: Context, one: str, other: str) -> bool:
    """Whether two structs are the same, or objects of one begin with the other."""
    return one == other or begins_with(context, one, other) or begins_with(context, other, one)


def begins_with(context: Context, inner: str, outer: str) -> bool:
    """Whether objects of ``outer`` begin with one of ``inner`` (as `struct sctp_sock` with `struct sock`)."""
    current = outer
    for _ in range(8):
        struct = context.table.struct_by_name.get(current)
        if struct is None or not struct.members:
            return False
        first = struct.members[0]
        if first.offset_bits or first.type.kind not in ("struct", "union") or first.type.name is None:
            return False
        if first.type.name == inner:
            return True
        current = first.type.name
    return False
