# SPDX-License-Identifier: Apache-2.0
"""Floating-point thresholds turned into integer ones that decide the same for every 64-bit word.

scikit-learn casts every input to float32 and compares it with a float64 threshold (`x <= t`, sklearn
`tree/_tree.pyx`, `Tree._apply_dense`).  The cast of an unsigned word to float32 rounds to nearest, ties to
even, and is monotone: a larger word never casts to a smaller float.  So the words that go left are exactly
0 .. T for one integer T, or none at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WORD_MAX = 2**64 - 1
NEVER = -1
"""Threshold of a test that no word passes, because its source threshold is negative."""


def integer_thresholds(thresholds: NDArray[np.float64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """The largest word whose float32 cast is at most each threshold, and whether there is such a word.

    Input of shape (n,), finite.  Returns words of shape (n,) (0 where there is none) and a mask of shape (n,)
    that is False where no word passes.  Thresholds above every word give 2**64 - 1: every word passes.
    """
    import numpy as np  # late: a compilation has no use for it

    source = np.asarray(thresholds, dtype=np.float64)
    largest = np.zeros(source.shape, dtype=np.uint64)
    for bit in range(63, -1, -1):
        candidate = largest | np.uint64(1 << bit)
        passes = candidate.astype(np.float32).astype(np.float64) <= source
        largest = np.where(passes, candidate, largest)
    return largest, source >= 0.0


def integer_threshold(threshold: float) -> int:
    """As `integer_thresholds` for one threshold; `NEVER` when no word passes."""
    import numpy as np  # late: a compilation has no use for it

    largest, exists = integer_thresholds(np.array([threshold], dtype=np.float64))
    return int(largest[0]) if exists[0] else NEVER


def float32_neighbours(word: int) -> tuple[int, ...]:
    """Words around `word` at which a float32 comparison can change its mind.

    These are the words next to it, the floats next to its cast, and the words next to the midpoints between
    those floats, where the rounding turns.  Sorted, each once, all within 0 .. 2**64 - 1.
    """
    import numpy as np  # late: a compilation has no use for it

    word = min(max(word, 0), WORD_MAX)
    nearest = np.float32(word)
    below, above = np.nextafter(nearest, np.float32(0)), np.nextafter(nearest, np.float32(np.inf))
    floats = [int(below), int(nearest), int(above)]
    centres = [word, *floats, (floats[0] + floats[1]) // 2, (floats[1] + floats[2]) // 2]
    around = {centre + step for centre in centres for step in (-1, 0, 1)}
    return tuple(sorted(w for w in around if 0 <= w <= WORD_MAX))
