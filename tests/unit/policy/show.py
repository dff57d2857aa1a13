# SPDX-License-Identifier: Apache-2.0
"""Checked policies as short text, so that tests can say what they expect."""

from __future__ import annotations

from o2cc.policy import model


def show(expr: model.Expr | None) -> str:
    """An expression, with loads as `[base+offset:size]`."""
    match expr:
        case None:
            return "-"
        case model.Const():
            return str(expr.value)
        case model.ArgumentValue():
            return f"${expr.index}"
        case model.ResultValue():
            return "result"
        case model.GlobalAddress():
            return f"&{expr.symbol}"
        case model.LoadField():
            return f"[{show(expr.base)}+{expr.offset}:{'s' if expr.signed else ''}{expr.size}]"
        case model.AddressOfField():
            return f"({show(expr.base)}+{expr.offset})"
        case model.BinaryExpr():
            return f"({show(expr.left)} {expr.operation}{'s' if expr.signed else ''} {show(expr.right)})"
        case model.UnaryExpr():
            return f"{expr.operation}({show(expr.operand)})"
        case model.Predicate():
            operands = [show(operand) for operand in expr.operands]
            return f"{expr.kind}({', '.join([*operands, *([expr.capability] if expr.capability else [])])})"


def effects(gate: model.Gate | model.Entry) -> list[str]:
    """The effects of a gate or an entry, one line each."""
    shown = []
    for effect in gate.effects:
        name = type(effect).__name__
        match effect:
            case model.Writes() | model.Reads():
                text = f"{name} {show(effect.pointer)}[{show(effect.length)}]"
            case model.Allocates():
                text = f"{name} {show(effect.pointer)}[{show(effect.length)}] {effect.struct}"
            case model.Gives() | model.Takes() | model.Lends():
                what = effect.capability or f"[{show(effect.length)}]"
                text = f"{name} {show(effect.pointer)} {what}"
            case model.Frees():
                text = f"{name} {show(effect.pointer)} {effect.capability or '-'}"
            case model.StoresCallback():
                text = f"{name} {show(effect.function)} {effect.entry or '-'}"
            case model.Shares():
                text = f"{name} {show(effect.pointer)}"
            case model.Returns():
                text = f"{name} {effect.right} {show(effect.pointer)}"
            case _:
                text = name
        condition = getattr(effect, "condition", None)
        shown.append(f"{text} when {show(condition)}" if condition is not None else text)
    return shown


def requires(gate: model.Gate | model.Entry) -> list[str]:
    """The requirements, implied ones in brackets."""
    return [f"<{show(item.condition)}>" if item.implied else show(item.condition) for item in gate.requires]
