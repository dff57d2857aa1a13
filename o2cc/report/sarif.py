# SPDX-License-Identifier: Apache-2.0
"""Diagnostics as SARIF 2.1.0, for code scanning services.

One run. Every code that occurs is a rule with its explanation; secondary labels are related locations.
Names of sources that are files become relative or absolute URI references.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from o2cc import __version__
from o2cc.diagnostics import Diagnostic, Severity, Span, sorted_diagnostics
from o2cc.report.explain import explanation, title
from o2cc.report.locate import Sources, locate

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "note"}


def sarif_document(diagnostics: Iterable[Diagnostic], sources: Sources) -> dict[str, Any]:
    """The SARIF log as plain values."""
    ordered = sorted_diagnostics(diagnostics)
    codes = sorted({d.code for d in ordered})
    index = {code: position for position, code in enumerate(codes)}
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "o2cc",
                        "version": __version__,
                        "rules": [_rule(code) for code in codes],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [_result(d, index[d.code], sources) for d in ordered],
            }
        ],
    }


def render_sarif(diagnostics: Iterable[Diagnostic], sources: Sources) -> str:
    """The SARIF log as text with a line end."""
    return json.dumps(sarif_document(diagnostics, sources), indent=2) + "\n"


def _rule(code: str) -> dict[str, Any]:
    page = explanation(code)
    rule: dict[str, Any] = {"id": code}
    if page is not None:
        rule["shortDescription"] = {"text": title(page)}
        rule["help"] = {"text": page, "markdown": page}
    return rule


def _result(diagnostic: Diagnostic, rule: int, sources: Sources) -> dict[str, Any]:
    text = "\n".join(
        (
            diagnostic.message,
            *(f"note: {note}" for note in diagnostic.notes),
            *((f"help: {diagnostic.help}",) if diagnostic.help else ()),
        )
    )
    result: dict[str, Any] = {
        "ruleId": diagnostic.code,
        "ruleIndex": rule,
        "level": _LEVELS[diagnostic.severity],
        "message": {"text": text},
        "locations": [],
    }
    if diagnostic.primary:
        result["locations"].append(_location(diagnostic.primary.span, diagnostic.primary.message, sources))
    elif diagnostic.path:
        result["locations"].append({"physicalLocation": {"artifactLocation": {"uri": _uri(diagnostic.path)}}})
    if diagnostic.secondary:
        result["relatedLocations"] = [
            {"id": number, **_location(label.span, label.message, sources)}
            for number, label in enumerate(diagnostic.secondary, 1)
        ]
    return result


def _location(span: Span, message: str, sources: Sources) -> dict[str, Any]:
    physical: dict[str, Any] = {"artifactLocation": {"uri": _uri(span.source)}}
    region: dict[str, Any] = {"charOffset": span.start, "charLength": span.end - span.start}
    location = locate(span, sources)
    if location:
        region = {
            "startLine": location.line,
            "startColumn": location.column,
            "endLine": location.end_line,
            "endColumn": location.end_column,
        }
    physical["region"] = region
    result: dict[str, Any] = {"physicalLocation": physical}
    if message:
        result["message"] = {"text": message}
    return result


def _uri(name: str) -> str:
    path = PurePath(name)
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())
