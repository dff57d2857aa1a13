# SPDX-License-Identifier: Apache-2.0
"""Lets the tests of this directory import their helpers by name, and take their time."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# How long an example takes says something of the machine's load, nothing of the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
