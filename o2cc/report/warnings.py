# SPDX-License-Identifier: Apache-2.0
"""`-W` options: which warnings count as errors and which are not shown.

`-W error` makes every warning an error, `-W error=CODE` one of them; `-W no-CODE` hides a warning, and
`-W no-error=CODE` keeps one a warning under `-W error`. Later options win. Errors cannot be changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from o2cc.diagnostics import Diagnostic, Severity
from o2cc.report.explain import known_codes


@dataclass(frozen=True)
class WarningOptions:
    """Parsed `-W` options."""

    all_errors: bool = False
    levels: tuple[tuple[str, Severity | None], ...] = ()  # code to its severity, None: hidden

    def apply(self, diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
        """The diagnostics with changed severities, without the hidden ones."""
        levels = dict(self.levels)
        result: list[Diagnostic] = []
        for diagnostic in diagnostics:
            if diagnostic.severity is not Severity.WARNING:
                result.append(diagnostic)
                continue
            default = Severity.ERROR if self.all_errors else Severity.WARNING
            severity = levels.get(diagnostic.code, default)
            if severity is not None:
                result.append(replace(diagnostic, severity=severity))
        return tuple(result)


def parse_warning_options(values: Iterable[str]) -> WarningOptions:
    """From the values of `-W`. Raises ValueError, with words for the user, for one that means nothing."""
    all_errors = False
    levels: dict[str, Severity | None] = {}
    for value in values:
        if value in ("error", "no-error"):
            all_errors = value == "error"
        elif value.startswith("error="):
            levels[_code(value, "error=")] = Severity.ERROR
        elif value.startswith("no-error="):
            levels[_code(value, "no-error=")] = Severity.WARNING
        elif value.startswith("no-"):
            levels[_code(value, "no-")] = None
        else:
            raise ValueError(f"`{value}` is none of error, error=CODE, no-error=CODE, no-CODE")
    return WarningOptions(all_errors, tuple(levels.items()))


def _code(value: str, prefix: str) -> str:
    code = value.removeprefix(prefix).upper()
    if code not in known_codes():
        raise ValueError(f"`{code}` is not the code of a diagnostic")
    return code
