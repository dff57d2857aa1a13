# SPDX-License-Identifier: Apache-2.0
"""Types that a policy can name without a struct: `u32`, `pointer`, `function`, ..."""

from __future__ import annotations

from collections.abc import Mapping

from o2cc.policy.expr import TypeKind, ValueType
from o2cc.policy.structs import POINTER

_BASE_SIZES: Mapping[str, int] = {
    "u8": 1,
    "s8": 1,
    "char": 1,
    "bool": 1,
    "u16": 2,
    "s16": 2,
    "short": 2,
    "u32": 4,
    "s32": 4,
    "int": 4,
    "u64": 8,
    "s64": 8,
    "long": 8,
    "size_t": 8,
    "loff_t": 8,
    "pointer": 8,
}


def base_type(name: str) -> ValueType | None:
    """The type that a base type's name stands for in a parameter list; None if there is none such."""
    if name == "pointer":
        return POINTER
    if name == "function":
        return ValueType(TypeKind.FUNCTION_POINTER)
    size = _BASE_SIZES.get(name)
    signed = name in ("s8", "s16", "s32", "s64", "int", "long", "short", "char", "loff_t")
    return None if size is None else ValueType(TypeKind.INTEGER, size=size, signed=signed)


def base_type_names() -> tuple[str, ...]:
    """All names that ``base_type`` knows."""
    return ("pointer", "function", *_BASE_SIZES)


def base_size(name: str) -> int | None:
    """Bytes of a base type; None if there is none such."""
    return _BASE_SIZES.get(name)
