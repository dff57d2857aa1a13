# SPDX-License-Identifier: Apache-2.0
"""How generated tests run: without limits on one example's time, which a busy machine would break, and in continuous
integration with the same examples each time, so that a failure there is the change's. Elsewhere they go on searching."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("search", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI", "").lower() in ("1", "true", "yes") else "search")
