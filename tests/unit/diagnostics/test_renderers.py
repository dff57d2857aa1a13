# SPDX-License-Identifier: Apache-2.0
"""The four forms of diagnostics."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from o2cc.diagnostics import Diagnostic, Label, SourceFile, Span, error, note, warning
from o2cc.report.locate import printable, sources_by_name
from o2cc.report.render import ErrorFormat, render, write_diagnostics
from o2cc.report.warnings import parse_warning_options

MAIN = SourceFile(
    "sctp.o2c",
    "use std.net\n\ncompartment sctp {\n    write struct sock { sk_er }\n    gate skb_put(skb, len)\n}\n",
)
LIBRARY = SourceFile("stdlib/net.o2c", "extern fn skb_put(skb, len: u32) returns held skb\n")


def _at(source: SourceFile, words: str) -> Span:
    start = source.text.index(words)
    return Span(source.name, start, start + len(words))


SAMPLE: tuple[Diagnostic, ...] = (
    error(
        "O2C0101",
        "`struct sock` has no field `sk_er`",
        _at(MAIN, "sk_er"),
        "unknown field",
        secondary=(
            Label(_at(MAIN, "struct sock"), "of this type"),
            Label(_at(MAIN, "sctp"), "for this compartment"),
        ),
        notes=("the type is that of 6.1.0-50-amd64", "two lines\nof a note"),
        help="did you mean `sk_err`?",
    ),
    warning(
        "O2C0102",
        "gate says nothing that the library does not say",
        _at(MAIN, "gate skb_put(skb, len)"),
        secondary=(Label(_at(LIBRARY, "skb_put"), "described here"),),
    ),
    error("O2C0901", "there is no file `x.o2k`", path="x.o2k"),
    note("O2C0103", "about the whole run"),
    error("O2C0104", "in a source whose text is not known", Span("gone.o2c", 3, 4), "here"),
)
SOURCES = sources_by_name([MAIN, LIBRARY])


@pytest.mark.parametrize("format", list(ErrorFormat))
def test_rendering(format: ErrorFormat, snapshot: SnapshotAssertion) -> None:
    assert render(SAMPLE, SOURCES, format) == snapshot


@pytest.mark.parametrize("format", list(ErrorFormat))
def test_order_of_input_does_not_matter(format: ErrorFormat) -> None:
    assert render(SAMPLE[::-1], SOURCES, format) == render(SAMPLE, SOURCES, format)


def test_json_counts_and_positions() -> None:
    document = json.loads(render(SAMPLE, SOURCES, ErrorFormat.JSON))
    assert (document["version"], document["errors"], document["warnings"]) == (1, 3, 1)
    primary = next(d for d in document["diagnostics"] if d["code"] == "O2C0101")["primary"]
    assert primary["start"] == {"offset": MAIN.text.index("sk_er"), "line": 4, "column": 25}
    assert primary["end"]["column"] == 30


def test_json_of_nothing_is_a_document() -> None:
    assert json.loads(render((), {}, ErrorFormat.JSON))["diagnostics"] == []


def test_sarif_has_what_its_schema_requires() -> None:
    log = json.loads(render(SAMPLE, SOURCES, ErrorFormat.SARIF))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert result["message"]["text"]
        for location in (*result["locations"], *result.get("relatedLocations", ())):
            region: dict[str, Any] = location["physicalLocation"].get("region", {})
            assert all(value >= 1 for key, value in region.items() if key.endswith(("Line", "Column")))


def test_sarif_uri_of_odd_paths() -> None:
    for name, uri in (("/a b/c.o2c", "file:///a%20b/c.o2c"), ("a b.o2c", "a%20b.o2c")):
        log = json.loads(render((error("O2C0901", "x", path=name),), {}, ErrorFormat.SARIF))
        location = log["runs"][0]["results"][0]["locations"][0]
        assert location["physicalLocation"]["artifactLocation"]["uri"] == uri


def test_text_is_plain_unless_the_stream_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, plain, refused = Terminal(), io.StringIO(), Terminal()
    write_diagnostics(SAMPLE, SOURCES, ErrorFormat.TEXT, coloured)
    write_diagnostics(SAMPLE, SOURCES, ErrorFormat.TEXT, plain)
    monkeypatch.setenv("NO_COLOR", "1")
    write_diagnostics(SAMPLE, SOURCES, ErrorFormat.TEXT, refused)
    assert "\x1b[31m" in coloured.getvalue() or "\x1b[1;31m" in coloured.getvalue()
    assert "\x1b" not in plain.getvalue()
    assert "\x1b[1;31m" not in refused.getvalue()
    assert "31m" not in refused.getvalue()


def test_stream_that_cannot_encode_gets_escapes() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    write_diagnostics((error("O2C0102", "unknown character in `§`"),), {}, ErrorFormat.TEXT, stream)
    stream.seek(0)
    assert "\\xa7" in stream.read()


@settings(deadline=None)
@given(st.text(), st.text(max_size=20), st.text(max_size=20), st.data())
def test_no_text_steers_the_terminal_or_breaks_a_renderer(
    text: str, message: str, name: str, data: st.DataObject
) -> None:
    source = SourceFile(name, text)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    span = source.span(start, end)
    sample = error(
        "O2C0101", message, span, message, secondary=(Label(span, name),), notes=(text,), help=name
    )
    for format in ErrorFormat:
        rendered = render((sample,), sources_by_name([source]), format)
        assert all(char == "\n" or char.isprintable() for char in rendered)


@settings(deadline=None)
@given(st.text())
def test_printable_keeps_what_is_printable(text: str) -> None:
    shown = printable(text)
    assert all(char == "\n" or char.isprintable() for char in shown)
    if text.isprintable():
        assert shown == text


def test_wide_characters_are_marked_in_cells() -> None:
    source = SourceFile("x", "漢字 b")
    rendered = render(
        (error("O2C0101", "m", source.span(3, 4)),), sources_by_name([source]), ErrorFormat.TEXT
    )
    line, marks = rendered.splitlines()[3:5]
    assert line.endswith("漢字 b")
    assert marks.endswith("|      ^")  # two cells each, and the space


# ---------------------------------------------------------------- -W


def _severities(*options: str) -> list[str]:
    sample = (warning("O2C0101", "a"), warning("O2C0102", "b"), error("O2C0103", "c"), note("O2C0104", "d"))
    return [f"{d.code[-1]}{d.severity}" for d in parse_warning_options(options).apply(sample)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ["1warning", "2warning", "3error", "4note"]),
        (("error",), ["1error", "2error", "3error", "4note"]),
        (("error=O2C0101",), ["1error", "2warning", "3error", "4note"]),
        (("no-O2C0101",), ["2warning", "3error", "4note"]),
        (("error", "no-error=o2c0102"), ["1error", "2warning", "3error", "4note"]),
        (("no-O2C0103", "no-O2C0104"), ["1warning", "2warning", "3error", "4note"]),
        (("error", "no-error"), ["1warning", "2warning", "3error", "4note"]),
    ],
)
def test_warning_options(options: tuple[str, ...], expected: list[str]) -> None:
    assert _severities(*options) == expected


@pytest.mark.parametrize("option", ["", "all", "error=", "error=O2C9999", "no-", "no-x", "error=;"])
def test_warning_options_that_mean_nothing(option: str) -> None:
    with pytest.raises(ValueError, match="`"):
        parse_warning_options([option])
