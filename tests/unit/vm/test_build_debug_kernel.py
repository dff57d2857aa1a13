# SPDX-License-Identifier: Apache-2.0
"""What the debug kernel is configured with, and that a setting which the kernel does not take is noticed."""

from __future__ import annotations

from scripts.build_debug_kernel import CONFIG, not_taken, wanted


def test_settings_that_were_not_taken_are_named() -> None:
    fragment = "# words\nCONFIG_A=y\nCONFIG_B=m\nCONFIG_C=16\n"
    config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=8\nCONFIG_D=y\n"
    assert not_taken(fragment, config) == ["CONFIG_B=m", "CONFIG_C=16"]
    assert not_taken(fragment, fragment) == []


def test_it_checks_memory_locks_and_sleeping() -> None:
    settings = wanted(CONFIG.read_text())
    for name in ("KASAN", "PROVE_LOCKING", "DEBUG_ATOMIC_SLEEP", "DEBUG_OBJECTS", "DEBUG_LIST"):
        assert settings[f"CONFIG_{name}"] == "y"
