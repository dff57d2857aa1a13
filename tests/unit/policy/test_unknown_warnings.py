# SPDX-License-Identifier: Apache-2.0
"""Functions that a policy allows and nobody speaks of: a warning each, or one that can be read."""

from __future__ import annotations

from o2cc.diagnostics import SourceFile
from o2cc.policy.unknown_warnings import UnknownCallee, unknown_warnings

_SOURCE = SourceFile("p.o2c", "call imports\ncall { few }\n")
_MANY = _SOURCE.span(5, 12)
_FEW = _SOURCE.span(20, 23)


def _typed(index: int) -> UnknownCallee:
    return UnknownCallee(f"typed_{index:02}", _MANY, ("skb",), (), (), None)


def test_few_functions_get_a_warning_each() -> None:
    found = list(unknown_warnings(_typed(index) for index in range(5)))
    assert [item.message.split("`")[1] for item in found] == [f"typed_{index:02}" for index in range(5)]
    assert all(item.code == "O2C0300" for item in found)


def test_many_functions_of_one_rule_share_one_that_names_all_that_is_not_checked() -> None:
    vague = [UnknownCallee(f"vague_{index}", _MANY, (), (), ("data",), None) for index in range(12)]
    opaque = UnknownCallee("clone.isra.0", _MANY, (), (), (), "made by the compiler")
    alone = UnknownCallee("few", _FEW, (), (), (), None)
    shared = UnknownCallee("proc_set_user", _MANY, (), ("de",), (), None)
    about_many, about_one = unknown_warnings([*map(_typed, range(30)), *vague, shared, opaque, alone])
    assert about_many.message.startswith("what 44 functions do")
    assert about_many.primary is not None
    assert about_many.primary.span == _MANY
    text = "\n".join(about_many.notes)
    assert "clone.isra.0" in text
    for index in range(12):
        assert f"`data` of `vague_{index}`" in text
    assert "`typed_07` and 22 more" in text
    assert "any kernel address passes which is not the compartment's own: `de` of `proc_set_user`" in text
    assert "`few`" in about_one.message
