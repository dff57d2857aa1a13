# SPDX-License-Identifier: Apache-2.0
"""What the loader has programs note: again where a list of the kernel's was in motion, and never for ever."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from o2cc.bpf.info import HookInfo
from o2cc.runtime import notes
from o2cc.runtime.libbpf import Program
from tests.unit.runtime.made import info

HOOKS = (
    HookInfo("o2c_namespaces", "syscall", "", "o2c_namespaces"),
    HookInfo("o2c_kfree", "raw_tracepoint", "kfree", "o2c_kfree"),
    HookInfo("o2c_others", "syscall", "", "o2c_others"),
)
PROGRAMS = {
    hook.program: Program(hook.program, descriptor) for descriptor, hook in enumerate(HOOKS, start=10)
}


def take(answers: dict[int, Iterator[int]]) -> tuple[bool, list[int]]:
    runs: list[int] = []

    def run(program: int) -> int:
        runs.append(program)
        return next(answers[program])

    return notes.take(replace(info(), hooks=HOOKS), PROGRAMS, run), runs


def test_each_is_run_once_where_nothing_moves() -> None:
    assert take({10: iter([0]), 12: iter([0])}) == (True, [10, 12])


def test_a_walk_that_did_not_come_to_its_end_is_made_again() -> None:
    assert take({10: iter([2, 2, 0]), 12: iter([2, 0])}) == (True, [10, 10, 10, 12, 12])


def test_the_tries_have_an_end_and_the_others_run_all_the_same() -> None:
    complete, runs = take({10: iter([2] * 100), 12: iter([0])})
    assert not complete
    assert runs == [10] * notes.TRIES + [12]


@pytest.mark.parametrize("hooks", [(), HOOKS[1:2]])
def test_an_object_without_such_programs_is_complete(hooks: tuple[HookInfo, ...]) -> None:
    assert notes.take(replace(info(), hooks=hooks), PROGRAMS, lambda program: 1)
