# SPDX-License-Identifier: Apache-2.0
"""Diagnostics as one JSON document.

`{"version": 1, "errors": n, "warnings": n, "diagnostics": [...]}`. A diagnostic has `code`, `severity`,
`message`, `path` (or null), `primary` (a label or null), `secondary` (labels), `notes` and `help` (or
null). A label has `source`, `start` and `end`, each with `offset`, `line` and `column` (line and column
from 1, null when the source's text is not at hand), and `message`. Fields may be added; none will change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from o2cc.diagnostics import Diagnostic, Label, Severity, sorted_diagnostics
from o2cc.report.locate import Sources, locate

FORMAT_VERSION = 1


def diagnostics_as_dict(diagnostics: Iterable[Diagnostic], sources: Sources) -> dict[str, Any]:
    """The document as plain values."""
    ordered = sorted_diagnostics(diagnostics)
    return {
        "version": FORMAT_VERSION,
        "errors": sum(d.severity is Severity.ERROR for d in ordered),
        "warnings": sum(d.severity is Severity.WARNING for d in ordered),
        "diagnostics": [_diagnostic(d, sources) for d in ordered],
    }


def render_json(diagnostics: Iterable[Diagnostic], sources: Sources) -> str:
    """The document as text with a line end."""
    return json.dumps(diagnostics_as_dict(diagnostics, sources), indent=2) + "\n"


def _diagnostic(diagnostic: Diagnostic, sources: Sources) -> dict[str, Any]:
    return {
        "code": diagnostic.code,
        "severity": str(diagnostic.severity),
        "message": diagnostic.message,
        "path": diagnostic.path,
        "primary": _label(diagnostic.primary, sources) if diagnostic.primary else None,
        "secondary": [_label(label, sources) for label in diagnostic.secondary],
        "notes": list(diagnostic.notes),
        "help": diagnostic.help,
    }


def _label(label: Label, sources: Sources) -> dict[str, Any]:
    span = label.span
    location = locate(span, sources)
    return {
        "source": span.source,
        "start": {
            "offset": span.start,
            "line": location.line if location else None,
            "column": location.column if location else None,
        },
        "end": {
            "offset": span.end,
            "line": location.end_line if location else None,
            "column": location.end_column if location else None,
        },
        "message": label.message,
    }
