# SPDX-License-Identifier: Apache-2.0
"""The standard library as tests use it: each module is read and parsed once for all of them."""

from __future__ import annotations

from functools import cache

from o2cc.policy.library import FileResolver


@cache
def standard_library() -> FileResolver:
    """Finds `std.*`, and remembers it."""
    return FileResolver()
