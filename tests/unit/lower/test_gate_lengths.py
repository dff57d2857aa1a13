# SPDX-License-Identifier: Apache-2.0
"""Lengths of what kernel functions write for their caller: behind a pointer, in another register, fixed ones."""

from __future__ import annotations

import pytest

from tests.unit.lower.confined import (
    OWN,
    REQUIREMENT,
    Confined,
    call_through_pointer,
    confined,
    offset_of,
)

USER_BUFFER = 0x7F00_0000_1000


def _transformation(kernel: Confined, digest: int, flags: int = 0) -> int:
    """A hash of the kernel (or of the compartment) whose digests have that many bytes."""
    algorithm = kernel.object(64) + 8
    kernel.world.machine.memory.write(algorithm - 8, digest.to_bytes(4, "little"))
    made = kernel.object(64, flags)
    place = made + offset_of("crypto_shash", "base.__crt_alg")
    kernel.world.machine.memory.write(place, algorithm.to_bytes(8, "little"))
    return made


def test_a_digest_fits_into_its_buffer() -> None:
    """Catches a check of the first bytes only: SHA-512 into 32 bytes."""
    kernel = confined()
    site = kernel.noted("call of crypto_shash_tfm_digest")
    buffer = kernel.object(32, OWN)

    def kinds(tfm: int) -> list[int]:
        return kernel.kinds(kernel.run(site, tfm, kernel.object(64), 64, buffer))

    assert kinds(_transformation(kernel, 32)) == []
    assert kinds(_transformation(kernel, 64)) == [REQUIREMENT]


def test_a_transformation_of_its_own_making_is_refused() -> None:
    """Catches a forged `tfm`, whose functions the kernel would call."""
    kernel = confined()
    site = kernel.noted("call of crypto_shash_tfm_digest")
    forged = _transformation(kernel, 16, OWN)
    assert kernel.kinds(kernel.run(site, forged, forged, 64, kernel.object(32, OWN))) == [REQUIREMENT]


def test_a_transformation_that_is_not_there_may_be_given_back() -> None:
    """Catches a report when a socket ends that never had one: the field's address in nothing is no kernel pointer."""
    kernel = confined()
    site = kernel.noted("call of crypto_destroy_tfm")
    base = offset_of("crypto_shash", "base")
    known, own = _transformation(kernel, 16), _transformation(kernel, 16, OWN)
    for given in (0, 2**64 - 2, known):
        assert kernel.kinds(kernel.run(site, given, (given + base) % 2**64)) == []
    assert kernel.kinds(kernel.run(site, own, own + base)) == [REQUIREMENT]


@pytest.mark.parametrize(("count", "expected"), [(64, []), (65, [REQUIREMENT])])
def test_a_string_move_by_call_counts_in_rcx(count: int, expected: list[int]) -> None:
    kernel = confined(targets="icall self, { rep_movs_alternative }")
    own, foreign = kernel.object(64, OWN), kernel.object(64)
    assert call_through_pointer(kernel, "rep_movs_alternative", own, foreign, 0, count) == expected


def test_a_string_move_by_call_to_user_space_writes_no_kernel_memory() -> None:
    kernel = confined(targets="icall self, { rep_movs_alternative }")
    own, foreign = kernel.object(64, OWN), kernel.object(64)
    assert call_through_pointer(kernel, "rep_movs_alternative", USER_BUFFER, own, 0, 64) == []
    assert call_through_pointer(kernel, "rep_movs_alternative", foreign, own, 0, 64) == [REQUIREMENT]


def test_a_sysctl_is_read_into_as_many_bytes_as_its_length_says() -> None:
    """Catches `*lenp` that nobody looks at."""
    kernel = confined()
    site = kernel.noted("call of proc_dointvec_minmax")
    table, buffer, length, position = (kernel.object(64, OWN) for _ in range(4))
    for count, expected in ((64, []), (65, [REQUIREMENT]), (0, [])):
        kernel.world.machine.memory.write(length, count.to_bytes(8, "little"))
        assert kernel.kinds(kernel.run(site, table, 0, buffer, length, position)) == expected
